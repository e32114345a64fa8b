// The passes that write an activation. Included by isa_*.cpp after vec.h.
//
// What differs between the operators is one expression per element; what differs between layouts is
// whether its coefficients belong to the row (NCHW) or to the channel vector (NHWC). A pass takes
// the expression as a lambda over vectors.

// Writes whole vectors past the caches when asked to and aligned for it.
template <typename scalar_t>
static inline void put(scalar_t* to, const Vec<Acc<scalar_t>>& v, bool stream) {
  if (stream)
    store_streaming(to, v);
  else
    store(to, v);
}

// True when every vector of every row (or pixel) of `stride` elements from `to` on is aligned.
template <typename scalar_t>
static inline bool can_stream(const void* to, int64_t stride) {
  constexpr int64_t bytes = kWidth<Acc<scalar_t>> * static_cast<int64_t>(sizeof(scalar_t));
  return reinterpret_cast<uintptr_t>(to) % bytes == 0 && stride * sizeof(scalar_t) % bytes == 0;
}

static inline void finish_streaming(bool stream) {
#if defined(__x86_64__)
  if (stream) _mm_sfence();
#else
  (void)stream;
#endif
}

// Calls step(i, count) for every vector of [0, size); count is less than the width in the last.
// Whole vectors get a constant count, so the branch on it disappears.
template <typename acc_t, typename Step>
static inline void for_vectors(int64_t size, const Step& step) {
  constexpr int64_t w = kWidth<acc_t>;
  int64_t i = 0;
  for (; i + w <= size; i += w) step(i, w);
  if (i < size) step(i, size - i);
}

template <typename scalar_t>
static inline Vec<Acc<scalar_t>> get(const scalar_t* from, int64_t count) {
  return count == kWidth<Acc<scalar_t>> ? load(from) : load_some(from, count);
}

template <typename scalar_t>
static inline void set(scalar_t* to, const Vec<Acc<scalar_t>>& v, int64_t count, bool stream) {
  if (count == kWidth<Acc<scalar_t>>)
    put(to, v, stream);
  else
    store_some(to, v, count);
}

// dx = grad_mean / S + 2 grad_m2 (x - mean) = shift + slope (x - center), per row. center is the
// mean as acc_t can hold it; what that leaves out goes into the shift.
template <typename acc_t>
struct MomentsGradient {
  acc_t shift, slope, center;
};

template <typename acc_t>
static inline MomentsGradient<acc_t> moments_gradient(double grad_mean, double grad_m2, double mean,
                                                      double inverse_size) {
  const double slope = 2.0 * grad_m2;
  const acc_t center = static_cast<acc_t>(mean);
  return {static_cast<acc_t>(grad_mean * inverse_size - slope * (mean - center)),
          static_cast<acc_t>(slope), center};
}

// The same for up to kGradientSlab channels of a sample.
constexpr int64_t kGradientSlab = 512;

template <typename acc_t>
struct MomentsGradients {
  alignas(64) acc_t shift[kGradientSlab];
  alignas(64) acc_t slope[kGradientSlab];
  alignas(64) acc_t center[kGradientSlab];

  MomentsGradients(const double* grad_mean, const double* grad_m2, const double* mean,
                   double inverse_size, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto one = moments_gradient<acc_t>(grad_mean[c], grad_m2[c], mean[c], inverse_size);
      shift[c] = one.shift;
      slope[c] = one.slope;
      center[c] = one.center;
    }
  }

  Vec<acc_t> at(int64_t c, int64_t count, const Vec<acc_t>& x) const {
    return get(shift + c, count) + get(slope + c, count) * (x - get(center + c, count));
  }
};

template <typename scalar_t>
static void moments_backward_rows(const MomentsBackwardArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const auto* x = static_cast<const scalar_t*>(a.x);
  auto* dx = static_cast<scalar_t*>(a.dx);
  const double inverse = 1.0 / static_cast<double>(a.s);
  const bool stream = a.stream && can_stream<scalar_t>(a.dx, a.s);
  for (int64_t row = begin; row < end; ++row) {
    const auto one =
        moments_gradient<acc_t>(a.grad_mean[row], a.grad_m2[row], a.mean[row], inverse);
    const Vec<acc_t> shift = broadcast<acc_t>(one.shift), slope = broadcast<acc_t>(one.slope);
    const Vec<acc_t> center = broadcast<acc_t>(one.center);
    const scalar_t* in = x + row * a.s;
    scalar_t* out = dx + row * a.s;
    for_vectors<acc_t>(a.s, [&](int64_t i, int64_t count) {
      set(out + i, shift + slope * (get(in + i, count) - center), count, stream);
    });
  }
  finish_streaming(stream);
}

template <typename scalar_t>
static void moments_backward_pixels(const MomentsBackwardArgs& a, int64_t sample, int64_t begin,
                                    int64_t end) {
  using acc_t = Acc<scalar_t>;
  const double inverse = 1.0 / static_cast<double>(a.s);
  for (int64_t first = begin; first < end; first += kGradientSlab) {
    const int64_t channels = least(kGradientSlab, end - first), row = sample * a.c + first;
    const MomentsGradients<acc_t> moments(a.grad_mean + row, a.grad_m2 + row, a.mean + row, inverse,
                                          channels);
    const auto* x = static_cast<const scalar_t*>(a.x) + sample * a.c * a.s + first;
    auto* dx = static_cast<scalar_t*>(a.dx) + sample * a.c * a.s + first;
    const bool stream = a.stream && can_stream<scalar_t>(dx, a.c);
    for (int64_t p = 0; p < a.s; ++p)
      for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
        set(dx + p * a.c + c, moments.at(c, count, get(x + p * a.c + c, count)), count, stream);
      });
    finish_streaming(stream);
  }
}
