// 3x3 convolution of NHWC images to few channels, by its definition: the gradient of a
// network's input. Included by isa_*.cpp after panel_kernels.h, see vec.h.
//
// A pixel is nine products of a vector of channels with one of taps. Four pixels of a row and three
// outputs stay in registers over all of them, as sums a lane; lanes are added at the end. Pixels
// outside of the image, and past the end of its row, are read from a pixel of zeros.

constexpr int64_t kNarrowPixels = 4;
constexpr int64_t kNarrowOuts = 3;  // a colour image

static int64_t narrow_images_together(int64_t, int64_t) { return 1; }

static int64_t narrow_scratch_size(int64_t, int64_t, int64_t in, int64_t) { return in; }

// Floats of one tap of one output, all input channels, and of all taps of kNarrowOuts outputs.
static inline int64_t narrow_tap(int64_t in) { return rounded_up(in, kWidth<float>); }
static inline int64_t narrow_group(int64_t in) { return 9 * kNarrowOuts * narrow_tap(in); }

static int64_t narrow_packed_size(int64_t in, int64_t out) {
  return (out + kNarrowOuts - 1) / kNarrowOuts * narrow_group(in);
}

// taps [9, in, out] -> [out / kNarrowOuts, 9, kNarrowOuts, in], for the given input channels; the
// last of them brings the zeros that fill up its vector.
static void narrow_pack(const float* taps, int64_t in, int64_t out, int64_t begin, int64_t end,
                        float* packed) {
  const int64_t last = end == in ? narrow_tap(in) : end;
  for (int64_t o = 0; o < (out + kNarrowOuts - 1) / kNarrowOuts * kNarrowOuts; ++o)
    for (int64_t t = 0; t < 9; ++t) {
      float* to = packed + o / kNarrowOuts * narrow_group(in) +
                  (t * kNarrowOuts + o % kNarrowOuts) * narrow_tap(in);
      for (int64_t k = begin; k < last; ++k)
        to[k] = o < out && k < in ? taps[(t * in + k) * out + o] : 0.0f;
    }
}

// Sums of nine taps for kNarrowPixels pixels and kNarrowOuts outputs; near[tap][pixel] is what the
// tap sees of the image, or zeros.
template <typename scalar_t>
static inline void narrow_sums(const scalar_t* (&near)[9][kNarrowPixels], const float* packed,
                               int64_t in, float (&sums)[kNarrowOuts][kNarrowPixels]) {
  Vec<float> lanes[kNarrowOuts][kNarrowPixels];
#pragma GCC unroll 3
  for (int64_t o = 0; o < kNarrowOuts; ++o)
#pragma GCC unroll 4
    for (int64_t p = 0; p < kNarrowPixels; ++p) lanes[o][p] = Vec<float>{};
  const int64_t stride = narrow_tap(in);
  for (int64_t t = 0; t < 9; ++t) {
    const float* taps = packed + t * kNarrowOuts * stride;
    const scalar_t* const* seen = near[t];
    for_vectors<float>(in, [&](int64_t c, int64_t count) {
      Vec<float> x[kNarrowPixels];
#pragma GCC unroll 4
      for (int64_t p = 0; p < kNarrowPixels; ++p) x[p] = get(seen[p] + c, count);
#pragma GCC unroll 3
      for (int64_t o = 0; o < kNarrowOuts; ++o) {
        const Vec<float> tap = load(taps + o * stride + c);
#pragma GCC unroll 4
        for (int64_t p = 0; p < kNarrowPixels; ++p) lanes[o][p] += x[p] * tap;
      }
    });
  }
#pragma GCC unroll 3
  for (int64_t o = 0; o < kNarrowOuts; ++o)
#pragma GCC unroll 4
    for (int64_t p = 0; p < kNarrowPixels; ++p) sums[o][p] = sum_of<float>(lanes[o][p]);
}

template <typename scalar_t>
static void narrow_forward(const Conv3x3Args& a, int64_t first, int64_t last, float* scratch) {
  const int64_t height = a.height, width = a.width, in = a.in;
  const auto* x = static_cast<const scalar_t*>(a.x);
  auto* y = static_cast<scalar_t*>(a.y);
  __builtin_memset(scratch, 0, static_cast<size_t>(in) * sizeof(scalar_t));
  const auto* zeros = reinterpret_cast<const scalar_t*>(scratch);
  for (int64_t row = first * height; row < last * height; ++row) {
    const int64_t i = row % height;
    for (int64_t j = 0; j < width; j += kNarrowPixels) {
      const scalar_t* near[9][kNarrowPixels];
      for (int64_t t = 0; t < 9; ++t)
        for (int64_t p = 0; p < kNarrowPixels; ++p) {
          const int64_t down = t / 3 - 1, q = j + p + t % 3 - 1;
          const bool inside = i + down >= 0 && i + down < height && q >= 0 && q < width;
          near[t][p] = inside ? x + ((row + down) * width + q) * in : zeros;
        }
      for (int64_t o = 0; o < a.out; o += kNarrowOuts) {
        float sums[kNarrowOuts][kNarrowPixels];
        narrow_sums(near, a.packed + o / kNarrowOuts * narrow_group(in), in, sums);
        for (int64_t p = 0; p < least(kNarrowPixels, width - j); ++p)
          for (int64_t k = 0; k < least(kNarrowOuts, a.out - o); ++k)
            store_some(y + (row * width + j + p) * a.out + o + k,
                       broadcast<float>(sums[k][p] + a.bias[o + k]), 1);
      }
    }
  }
}

template <typename scalar_t>
constexpr Conv3x3Forward kNarrowForward = {narrow_images_together, narrow_scratch_size,
                                           narrow_packed_size, narrow_pack,
                                           narrow_forward<scalar_t>};
