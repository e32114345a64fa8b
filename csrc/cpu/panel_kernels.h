// Products of matrices of floats, a panel of columns at a time. Included by isa_*.cpp after
// elementwise_kernels.h, see vec.h.

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
