// What the convolutions share: products of matrices of floats, a panel of columns at a time, and
// sums over pixels. Included by isa_*.cpp after elementwise_kernels.h, see vec.h.

constexpr int64_t kPanel = 2 * kWidth<float>;  // columns of a product held in registers
constexpr int64_t kRowsTogether = 6;           // and its rows

using VecF = Vec<float>;

static inline int64_t rounded_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// to[rows, columns] (+)= a b for `rows` rows of a; a(row, k) is at a[row * a_row + k * a_depth], b
// and `to` have kPanel columns, b_stride and to_stride apart.
template <bool add>
[[gnu::always_inline]] static inline void multiply_panel(const float* a, int64_t a_row,
                                                         int64_t a_depth, const float* b,
                                                         int64_t b_stride, int64_t depth, float* to,
                                                         int64_t to_stride) {
  constexpr int64_t w = kWidth<float>;
  VecF sum[kRowsTogether][2];
#pragma GCC unroll 6
  for (int64_t r = 0; r < kRowsTogether; ++r) {
    sum[r][0] = add ? load(to + r * to_stride) : VecF{};
    sum[r][1] = add ? load(to + r * to_stride + w) : VecF{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const VecF low = load(b + k * b_stride), high = load(b + k * b_stride + w);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kRowsTogether; ++r) {
      const VecF factor = broadcast<float>(a[r * a_row + k * a_depth]);
      sum[r][0] += factor * low;
      sum[r][1] += factor * high;
    }
  }
#pragma GCC unroll 6
  for (int64_t r = 0; r < kRowsTogether; ++r) {
    store(to + r * to_stride, sum[r][0]);
    store(to + r * to_stride + w, sum[r][1]);
  }
}

static inline float widened(float value) { return value; }
static inline float widened(BFloat16 value) {
  return bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
}

// sums[out] += grad_y over the pixels of images [first, last): up to kRun in float, then in double.
template <typename scalar_t>
static void sum_pixels(const Conv3x3BackwardArgs& a, int64_t first, int64_t last, double* sums) {
  constexpr int64_t kRun = 64;
  const auto* grad_y = static_cast<const scalar_t*>(a.grad_y);
  const int64_t end = last * a.height * a.width;
  for (int64_t pixel = first * a.height * a.width; pixel < end; pixel += kRun) {
    const int64_t count = least(kRun, end - pixel);
    for_vectors<float>(a.out, [&](int64_t c, int64_t lanes) {
      VecF sum = {};
      for (int64_t p = 0; p < count; ++p) sum += get(grad_y + (pixel + p) * a.out + c, lanes);
      if (lanes == kWidth<float>) {
        add_widened<float>(sums + c, sum);
      } else {
        for (int64_t lane = 0; lane < lanes; ++lane) sums[c + lane] += sum[lane];
      }
    });
  }
}

// weight[out, 9, in] = taps [9, kLine, out] of input channels [begin, end).
static inline void put_taps(const float* taps, int64_t in, int64_t out, int64_t begin, int64_t end,
                            float* weight) {
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t o = 0; o < out; ++o)
      for (int64_t k = begin; k < end; ++k)
        weight[(o * 9 + t) * in + k] = taps[(t * kLine + k - begin) * out + o];
}
