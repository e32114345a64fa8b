// bn_act_moments with a max pool and its backward against double, where positions are kept and
// where they are not, on even and odd planes.

#include <cmath>

#include "harness.h"

namespace {

using namespace harness;
using ltdd::cuda::BnAct;

// Where in its window the maximum lies, line by line; -1 where the ReLU lets nothing pass.
struct Maximum {
  double value = 0;
  int place = -1;
};

template <typename scalar_t>
void check(const Shape& shape) {
  using acc_t = ltdd::cuda::acc_type<scalar_t>;
  const std::string what = "bn_max_moments " + shape.text() + " type " +
                           std::to_string(static_cast<int>(type_of<scalar_t>));
  const double rounding = kRounding<acc_t>, stored = kRounding<scalar_t>;
  const Activation a = shape.activation(type_of<scalar_t>);
  expect(ltdd::cuda::takes_max_pool(a), what + " is taken");
  const Shape out{shape.n, shape.c, (shape.h + 1) / 2, (shape.w + 1) / 2, true};

  auto x = numbers<scalar_t>(31, shape.elements(), -0.25);
  x[shape.index(0, 0)] = x[shape.index(0, shape.s() - 1)];  // equal values: the first counts
  const auto k = numbers<acc_t>(32, shape.c, 0.25), h = numbers<acc_t>(33, shape.c, -0.25);
  const BnAct fused{k.data(), h.data(), nullptr, true, false};
  Buffer<scalar_t> y(out.elements()), y_again(out.elements()), dx(shape.elements());
  Buffer<double> mean(shape.rows()), m2(shape.rows()), plain_mean(shape.rows()),
      plain_m2(shape.rows());
  Buffer<unsigned char> position(out.elements());
  Buffer<char> scratch(ltdd::cuda::bn_max_moments_scratch_bytes(a));
  ltdd::cuda::bn_max_moments(a, fused, x.data(), y_again.data(), mean.data(), m2.data(), nullptr,
                             scratch.data(), nullptr);
  ltdd::cuda::bn_max_moments(a, fused, x.data(), y.data(), mean.data(), m2.data(), position.data(),
                             scratch.data(), nullptr);
  Buffer<char> plain_scratch(ltdd::cuda::row_moments_scratch_bytes(a));
  ltdd::cuda::row_moments(a, x.data(), plain_mean.data(), plain_m2.data(), plain_scratch.data(),
                          nullptr);
  const auto grad_y = numbers<scalar_t>(34, out.elements());
  const auto grad_mean = numbers<double>(35, shape.rows()),
             grad_m2 = numbers<double>(36, shape.rows());
  ltdd::cuda::bn_max_moments_backward(a, fused, position.data(), grad_y.data(), grad_mean.data(),
                                      grad_m2.data(), x.data(), mean.data(), dx.data(), nullptr);
  record(y);
  record(mean);
  record(m2);
  record(position);
  record(dx);

  const double size = static_cast<double>(shape.s());
  for (size_t row = 0; row < shape.rows(); ++row) {
    const int64_t channel = static_cast<int64_t>(row) % shape.c;
    std::vector<double> grad(static_cast<size_t>(shape.s()));
    for (int64_t o = 0; o < out.s(); ++o) {
      const int top = static_cast<int>(o) / out.w * 2 - 1,
                left = static_cast<int>(o) % out.w * 2 - 1;
      Maximum found;
      for (int p = 0; p < 9; ++p) {
        const int line = top + p / 3, column = left + p % 3;
        if (line < 0 || column < 0 || line >= shape.h || column >= shape.w) continue;
        const size_t at = shape.index(row, int64_t(line) * shape.w + column);
        const double before = k.value(channel) * x.value(at) + h.value(channel);
        if (before > found.value) found = {before, p};
      }
      const size_t at = out.index(row, o);
      expect_close(what + " y", at, y.value(at), found.value,
                   stored * found.value + 4 * rounding + 0x1p-25);
      expect_close(what + " y without positions", at, y_again.value(at), y.value(at), 0);
      const int place = position[at] == 9 ? -1 : position[at];
      if (found.value < 1e-6 && found.place >= 0) continue;  // rounding decides
      expect_close(what + " position", at, place, found.place, 0);
      if (place < 0) continue;
      const int64_t source = int64_t(top + place / 3) * shape.w + left + place % 3;
      grad[static_cast<size_t>(source)] += grad_y.value(at);
    }
    for (int64_t s = 0; s < shape.s(); ++s) {
      const size_t at = shape.index(row, s);
      const double g = grad[static_cast<size_t>(s)], from_mean = grad_mean.value(row) / size;
      const double from_m2 = 2 * grad_m2.value(row) * (x.value(at) - mean.value(row));
      const double expected = k.value(channel) * g + from_mean + from_m2;
      expect_close(what + " dx", at, dx.value(at), expected,
                   stored * std::fabs(expected) + 0x1p-25 +
                       8 * rounding * (4 + std::fabs(from_mean) + std::fabs(from_m2)));
    }
    const double variation = std::sqrt(plain_m2.value(row) / size);
    expect_close(what + " mean", row, mean.value(row), plain_mean.value(row),
                 0x1p-50 + 4 * rounding * variation);
    expect_close(what + " m2", row, m2.value(row), plain_m2.value(row),
                 16 * rounding * plain_m2.value(row) + 1e-14);
  }
}

// A NaN is the maximum of its windows, and their gradients go to it.
void check_nan() {
  const Shape shape{1, 4, 6, 6, true}, out{1, 4, 3, 3, true};
  const Activation a = shape.activation(Type::kFloat32);
  auto x = numbers<float>(37, shape.elements());
  const size_t bad = shape.index(2, 3 * 6 + 3);
  x[bad] = NAN;
  Buffer<float> k(4), h(4), y(out.elements()), dx(shape.elements()), ones(out.elements());
  Buffer<double> mean(4), m2(4), zeros(4);
  Buffer<unsigned char> position(out.elements());
  for (size_t i = 0; i < ones.size(); ++i) ones[i] = 1;
  for (size_t i = 0; i < 4; ++i) k[i] = 1, h[i] = 0, zeros[i] = 0;
  const BnAct fused{k.data(), h.data(), nullptr, true, false};
  ltdd::cuda::bn_max_moments(a, fused, x.data(), y.data(), mean.data(), m2.data(), position.data(),
                             nullptr, nullptr);
  for (int64_t row = 0; row < 4; ++row)
    for (int64_t o = 0; o < 9; ++o) {
      const bool has = row == 2 && o / 3 > 0 && o % 3 > 0;
      expect(std::isnan(y.value(out.index(row, o))) == has, "NaN of a max pool");
      const int place = static_cast<int>((3 - (2 * (o / 3) - 1)) * 3 + 3 - (2 * (o % 3) - 1));
      if (has) expect(position[out.index(row, o)] == place, "position of a NaN");
    }
}

template <typename scalar_t>
void check_all() {
  constexpr int V = 4;  // of a thread
  for (const Shape& shape :
       {Shape{2, V, 4, 4, true}, Shape{1, 3 * V, 7, 7, true}, Shape{1, V, 5, 8, true},
        Shape{1, 2 * V, 8, 5, true}, Shape{2, V, 1, 1, true}, Shape{1, V, 1, 6, true},
        Shape{1, V, 3, 1, true}, Shape{1, V, 48, 50, true}, Shape{1, 9 * V, 10, 12, true}})
    check<scalar_t>(shape);
}

}  // namespace

void test_bn_max_moments() {
  check_all<float>();
  check_all<__half>();
  check_all<__nv_bfloat16>();
  check_nan();
  expect(!ltdd::cuda::takes_max_pool({Type::kBFloat16, 1, 6, 4, 4, true}), "no odd vectors");
  expect(!ltdd::cuda::takes_max_pool({Type::kFloat64, 1, 8, 4, 4, true}), "no float64");
  expect(!ltdd::cuda::takes_max_pool({Type::kFloat32, 1, 8, 4, 4, false}), "no NCHW");
  expect(!ltdd::cuda::takes_max_pool({Type::kFloat32, 0, 8, 4, 4, true}), "nothing");
}
