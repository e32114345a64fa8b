// Moments of the channels of one sample whose pixels lie together (NHWC). Included by isa_*.cpp
// after rows_kernels.h, see vec.h.
//
// Every pixel is read once, a block of them at a time, whose sums then go to totals in double. With
// AVX-512 up to eight vectors of channels have their sums in registers, and pixel is read after
// pixel; otherwise sums stay in the cache, and four pixels are read side by side, as that costs.
// The pivot of a channel is its mean over a few pixels spread over the image; rows_kernels.h says
// why that is enough, and channels where it was not are read again, twice.

constexpr int64_t kStepPixels = 4;      // read side by side
constexpr int64_t kRunPixels = 16;      // summed in registers
constexpr int64_t kBlockPixels = 64;    // summed in acc_t, sixteen steps or four runs
constexpr int64_t kPivotPixels = 8;     // at most
constexpr int64_t kAheadBytes = 24576;  // of the prefetch: it follows memory, not the loops
constexpr int64_t kSlab = 512;          // channels worked on at once, at most

// Sums of d = x - pivot over the pixels seen so far, for up to kSlab channels: those of a block,
// and of all blocks before.
template <typename acc_t>
struct SlabSums {
  static constexpr int64_t kPadded = kSlab + kWidth<acc_t>;
  alignas(64) acc_t pivot[kPadded];
  alignas(64) acc_t sum[kPadded], sum2[kPadded];
  alignas(64) double total[kPadded], total2[kPadded];
};

template <int64_t pixels, typename scalar_t>
static inline void add_step(SlabSums<Acc<scalar_t>>& slab, const scalar_t* x, int64_t stride,
                            int64_t channels) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t size = static_cast<int64_t>(sizeof(scalar_t));
  for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
    if (channels == stride)
      prefetch<pixels>(x + kAheadBytes / size + c * pixels);
    else if (c % (64 / size) == 0)
      for (int64_t p = 0; p < pixels; ++p)
        __builtin_prefetch(x + (2 * kStepPixels + p) * stride + c);
    const Vec<acc_t> center = load(slab.pivot + c);
    Vec<acc_t> sum = load(slab.sum + c), sum2 = load(slab.sum2 + c), d[pixels];
#pragma GCC unroll 4
    for (int64_t p = 0; p < pixels; ++p) {
      d[p] = get(x + p * stride + c, count) - center;
    }
    if constexpr (pixels == 4) {
      sum += (d[0] + d[1]) + (d[2] + d[3]);
      sum2 += (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
    } else {
      sum += d[0];
      sum2 += d[0] * d[0];
    }
    store(slab.sum + c, sum);
    store(slab.sum2 + c, sum2);
  });
}

// Adds a few pixels of `vectors` vectors of channels.
template <int64_t vectors, typename scalar_t>
static inline void add_narrow_run(SlabSums<Acc<scalar_t>>& slab, const scalar_t* x, int64_t stride,
                                  int64_t pixels) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  Vec<acc_t> center[vectors], sum[vectors], sum2[vectors];
#pragma GCC unroll 8
  for (int64_t v = 0; v < vectors; ++v) {
    center[v] = load(slab.pivot + v * w);
    sum[v] = sum2[v] = Vec<acc_t>{};
  }
  const bool ask = asks_ahead();
  for (int64_t p = 0; p < pixels; ++p) {
    if (ask) prefetch<vectors>(x + p * stride + kAheadBytes / int64_t{sizeof(scalar_t)});
#pragma GCC unroll 8
    for (int64_t v = 0; v < vectors; ++v) {
      const Vec<acc_t> d = load(x + p * stride + v * w) - center[v];
      sum[v] += d;
      sum2[v] += d * d;
    }
  }
#pragma GCC unroll 8
  for (int64_t v = 0; v < vectors; ++v) {
    store(slab.sum + v * w, load(slab.sum + v * w) + sum[v]);
    store(slab.sum2 + v * w, load(slab.sum2 + v * w) + sum2[v]);
  }
}

// That function for so many of the channels of a pixel, or null where registers would not hold them
// all: which of the two ways a channel is summed must not depend on how channels are split.
template <typename scalar_t>
static inline auto narrow_run(int64_t stride, int64_t channels)
    -> void (*)(SlabSums<Acc<scalar_t>>&, const scalar_t*, int64_t, int64_t) {
  constexpr int64_t w = kWidth<Acc<scalar_t>>;
  const bool narrow = stride == w || stride == 2 * w || stride == 4 * w || stride == 8 * w;
  if (kVectorBytes != 64 || !narrow) return nullptr;
  if (channels == w) return add_narrow_run<1, scalar_t>;
  if (channels == 2 * w) return add_narrow_run<2, scalar_t>;
  if (channels == 4 * w) return add_narrow_run<4, scalar_t>;
  return channels == 8 * w ? add_narrow_run<8, scalar_t> : nullptr;
}

// Adds the pixels [begin, end) of the sample at x.
template <typename scalar_t>
static inline void add_pixels(SlabSums<Acc<scalar_t>>& slab, const scalar_t* x, int64_t begin,
                              int64_t end, int64_t stride, int64_t channels) {
  using acc_t = Acc<scalar_t>;
  const auto narrow = narrow_run<scalar_t>(stride, channels);
  for (int64_t first = begin; first < end; first += kBlockPixels) {
    const int64_t last = least(end, first + kBlockPixels);
    for (int64_t c = 0; c < channels; ++c) slab.sum[c] = slab.sum2[c] = 0;
    int64_t p = first;
    if (narrow != nullptr)
      for (; p < last; p += kRunPixels)
        narrow(slab, x + p * stride, stride, least(kRunPixels, last - p));
    for (; p + kStepPixels <= last; p += kStepPixels)
      add_step<kStepPixels>(slab, x + p * stride, stride, channels);
    for (; p < last; ++p) add_step<1>(slab, x + p * stride, stride, channels);
    for (int64_t c = 0; c < channels; c += kWidth<acc_t>) {
      add_widened<acc_t>(slab.total + c, load(slab.sum + c));
      add_widened<acc_t>(slab.total2 + c, load(slab.sum2 + c));
    }
  }
}

// Empties the totals and finds the pivots of `channels` channels from x on.
template <typename scalar_t>
static inline void begin_slab(SlabSums<Acc<scalar_t>>& slab, const scalar_t* x, int64_t s,
                              int64_t stride, int64_t channels) {
  using acc_t = Acc<scalar_t>;
  const int64_t samples = least((s + 3) / 4, kPivotPixels);
  const acc_t inverse = acc_t(1) / static_cast<acc_t>(samples);
  for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
    Vec<acc_t> sum = {};
    for (int64_t i = 0; i < samples; ++i) sum += get(x + s * i / samples * stride + c, count);
    store(slab.pivot + c, on_grid<scalar_t>(sum * inverse));
  });
  for (int64_t c = 0; c < channels; ++c) slab.total[c] = slab.total2[c] = 0.0;
}

// One channel, in two passes.
template <typename scalar_t>
[[gnu::noinline]] static void moments_of_channel(const scalar_t* x, int64_t s, int64_t stride,
                                                 double* mean, double* m2) {
  const auto at = [&](int64_t p) { return static_cast<double>(load_some(x + p * stride, 1)[0]); };
  double sum = 0.0, sum2 = 0.0;
  for (int64_t p = 0; p < s; ++p) sum += at(p);
  *mean = sum / static_cast<double>(s);
  for (int64_t p = 0; p < s; ++p) sum2 += (at(p) - *mean) * (at(p) - *mean);
  *m2 = sum2;
}

// Writes the moments of the slab, whose pixels start at x.
template <typename scalar_t>
static inline void end_slab(const SlabSums<Acc<scalar_t>>& slab, const scalar_t* x, int64_t s,
                            int64_t stride, int64_t channels, double* mean, double* m2) {
  const double inverse = 1.0 / static_cast<double>(s);
  bool any_bad = false;
  for (int64_t c = 0; c < channels; ++c) {
    const double d = slab.total[c], shift = d * inverse;
    mean[c] = corrected(slab.pivot[c], shift);
    m2[c] = slab.total2[c] - d * shift;
    any_bad |= bad_pivot(d, shift, m2[c]);
  }
  for (int64_t c = 0; any_bad && c < channels; ++c)
    if (bad_pivot(slab.total[c], slab.total[c] * inverse, m2[c]))
      moments_of_channel(x + c, s, stride, mean + c, m2 + c);
}

template <typename scalar_t>
static void moments_pixels(const MomentsArgs& a, int64_t sample, int64_t begin, int64_t end) {
  SlabSums<Acc<scalar_t>> slab;
  for (int64_t c = begin; c < end; c += kSlab) {
    const int64_t channels = least(kSlab, end - c), row = sample * a.c + c;
    const scalar_t* x = static_cast<const scalar_t*>(a.x) + sample * a.s * a.c + c;
    begin_slab(slab, x, a.s, a.c, channels);
    add_pixels(slab, x, 0, a.s, a.c, channels);
    end_slab(slab, x, a.s, a.c, channels, a.mean + row, a.m2 + row);
  }
}
