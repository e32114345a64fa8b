// The passes that write an activation. Included by isa_*.cpp after moments_kernels.h, see vec.h.
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

// dx = grad_mean / S + 2 grad_m2 (x - mean)
template <typename scalar_t>
static void moments_backward_rows(const MomentsBackwardArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const auto* x = static_cast<const scalar_t*>(a.x);
  const auto* grad_mean = static_cast<const acc_t*>(a.grad_mean);
  const auto* grad_m2 = static_cast<const acc_t*>(a.grad_m2);
  const auto* mean = static_cast<const acc_t*>(a.mean);
  auto* dx = static_cast<scalar_t*>(a.dx);
  const acc_t inverse = acc_t(1) / static_cast<acc_t>(a.s);
  const bool stream = a.stream && can_stream<scalar_t>(a.dx, a.s);
  for (int64_t row = begin; row < end; ++row) {
    const Vec<acc_t> shift = broadcast<acc_t>(grad_mean[row] * inverse);
    const Vec<acc_t> slope = broadcast<acc_t>(2 * grad_m2[row]), m = broadcast<acc_t>(mean[row]);
    const scalar_t* in = x + row * a.s;
    scalar_t* out = dx + row * a.s;
    for_vectors<acc_t>(a.s, [&](int64_t i, int64_t count) {
      set(out + i, shift + slope * (get(in + i, count) - m), count, stream);
    });
  }
  finish_streaming(stream);
}

template <typename scalar_t>
static void moments_backward_pixels(const MomentsBackwardArgs& a, int64_t sample, int64_t begin,
                                    int64_t end) {
  using acc_t = Acc<scalar_t>;
  const int64_t row = sample * a.c;
  const auto* x = static_cast<const scalar_t*>(a.x) + row * a.s;
  const auto* grad_mean = static_cast<const acc_t*>(a.grad_mean) + row;
  const auto* grad_m2 = static_cast<const acc_t*>(a.grad_m2) + row;
  const auto* mean = static_cast<const acc_t*>(a.mean) + row;
  auto* dx = static_cast<scalar_t*>(a.dx) + row * a.s;
  const acc_t inverse = acc_t(1) / static_cast<acc_t>(a.s);
  const bool stream = a.stream && can_stream<scalar_t>(static_cast<scalar_t*>(a.dx) + begin, a.c);
  for (int64_t p = 0; p < a.s; ++p) {
    const scalar_t* in = x + p * a.c + begin;
    scalar_t* out = dx + p * a.c + begin;
    for_vectors<acc_t>(end - begin, [&](int64_t i, int64_t count) {
      const int64_t c = begin + i;
      const Vec<acc_t> d = get(in + i, count) - get(mean + c, count);
      set(out + i, get(grad_mean + c, count) * inverse + 2 * get(grad_m2 + c, count) * d, count,
          stream);
    });
  }
  finish_streaming(stream);
}
