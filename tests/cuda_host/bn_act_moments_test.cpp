// bn_act_moments and its backward against double: with and without residual, ReLU and pooling, in
// both layouts, by vectors and element by element, odd planes included. With two readers of y: the
// same bits as with the sum of their gradients. With what passed the ReLU kept in place of the
// residual: the same bits as without.

#include <cmath>

#include "harness.h"

namespace {

using namespace harness;
using ltdd::cuda::BnAct;

struct Switches {
  bool residual, relu, pool;
};

template <typename scalar_t>
void expect_same(const std::string& what, const Buffer<scalar_t>& got,
                 const Buffer<scalar_t>& expected) {
  for (size_t at = 0; at < expected.size(); ++at)
    expect_close(what, at, got.value(at), expected.value(at), 0);
}

// Whole vectors of x, and nothing else, have bits; they say where y is not 0.
template <typename scalar_t>
void check_passed(const std::string& what, const Activation& a, const Buffer<scalar_t>& y,
                  const Buffer<unsigned char>& passed) {
  constexpr size_t V = ltdd::cuda::kVector<scalar_t>;
  const int64_t run = a.channels_last ? a.channels : a.size();
  const bool whole = run % V == 0 || (!a.channels_last && a.size() <= 256 && y.size() % V == 0);
  const bool kept = whole && !std::is_same_v<scalar_t, double>;
  expect(passed.size() == (kept ? y.size() / V : 0), what + " bytes of what passed");
  for (size_t at = 0; at < passed.size() * V; ++at) {
    const bool bit = passed[at / V] >> at % V & 1;
    if (std::fabs(y.value(at)) < 1e-6) continue;  // of this, less may be left than can be stored
    expect(bit == (y.value(at) != 0), what + " bit");
  }
  for (size_t at = 0; at < passed.size(); ++at)
    expect(passed[at] >> V == 0, what + " rest of bits");
}

template <typename scalar_t>
void check(const Shape& shape, Switches with, bool shifted = false) {
  using acc_t = ltdd::cuda::acc_type<scalar_t>;
  const std::string what = "bn_act_moments " + shape.text() + " type " +
                           std::to_string(static_cast<int>(type_of<scalar_t>)) +
                           (with.residual ? " residual" : "") + (with.relu ? " relu" : "") +
                           (with.pool ? " pool" : "");
  const double rounding = kRounding<acc_t>, stored = kRounding<scalar_t>;
  const Activation a = shape.activation(type_of<scalar_t>);
  Shape out_shape = shape;
  if (with.pool) out_shape.h /= 2, out_shape.w /= 2;

  auto x = numbers<scalar_t>(21, shape.elements(), 0.25, 1.0, shifted);
  for (size_t row = 0; row < shape.rows(); ++row)  // what the moments start from, far from the rest
    x[shape.index(static_cast<int64_t>(row), 0)] = ltdd::cuda::narrow<scalar_t>(acc_t(4));
  const auto residual = numbers<scalar_t>(22, shape.elements());
  const auto k = numbers<acc_t>(23, shape.c, 0.75), h = numbers<acc_t>(24, shape.c);
  const BnAct fused{k.data(), h.data(), with.residual ? residual.data() : nullptr, with.relu,
                    with.pool};
  Buffer<scalar_t> y(out_shape.elements());
  Buffer<double> mean(shape.rows()), m2(shape.rows());
  Buffer<char> scratch(ltdd::cuda::bn_act_moments_scratch_bytes(a, with.residual, with.pool));
  ltdd::cuda::bn_act_moments(a, fused, x.data(), y.data(), mean.data(), m2.data(), nullptr,
                             scratch.data(), nullptr);
  auto grad_y = numbers<scalar_t>(25, out_shape.elements());
  const auto first = numbers<scalar_t>(28, shape.elements(), 0, 1, shifted),
             second = numbers<scalar_t>(29, shape.elements(), 0.5, 1, shifted);
  for (size_t at = 0; at < shape.elements() && !with.pool; ++at)
    grad_y[at] = ltdd::cuda::narrow<scalar_t>(static_cast<acc_t>(first.value(at)) +
                                              static_cast<acc_t>(second.value(at)));
  const auto grad_mean = numbers<double>(26, shape.rows()),
             grad_m2 = numbers<double>(27, shape.rows());
  Buffer<scalar_t> dx(shape.elements()), dresidual(with.residual ? shape.elements() : 0);
  const auto backward = [&](const BnAct& of, const unsigned char* passed, bool shared,
                            Buffer<scalar_t>& to_x, Buffer<scalar_t>& to_residual) {
    ltdd::cuda::bn_act_moments_backward(a, of, passed, shared ? first.data() : grad_y.data(),
                                        shared ? second.data() : nullptr, grad_mean.data(),
                                        grad_m2.data(), x.data(), mean.data(), to_x.data(),
                                        with.residual ? to_residual.data() : nullptr, nullptr);
  };
  backward(fused, nullptr, false, dx, dresidual);
  if (!with.pool) {  // the two parts of grad_y instead
    Buffer<scalar_t> dx_again(dx.size()), dresidual_again(dresidual.size());
    backward(fused, nullptr, true, dx_again, dresidual_again);
    expect_same(what + " dx of two readers", dx_again, dx);
    expect_same(what + " dresidual of two readers", dresidual_again, dresidual);
  }
  if (with.residual && with.relu && !with.pool) {
    Buffer<unsigned char> passed(ltdd::cuda::bn_act_passed_bytes(a));
    Buffer<scalar_t> y_again(y.size());
    Buffer<double> mean_again(mean.size()), m2_again(m2.size());
    if (passed.size() > 0) {
      ltdd::cuda::bn_act_moments(a, fused, x.data(), y_again.data(), mean_again.data(),
                                 m2_again.data(), passed.data(), scratch.data(), nullptr);
      expect_same(what + " y where bits are kept", y_again, y);
      expect_same(what + " mean where bits are kept", mean_again, mean);
      expect_same(what + " m2 where bits are kept", m2_again, m2);
    }
    check_passed(what, a, y, passed);
    BnAct without = fused;
    without.residual = nullptr;
    for (const bool shared : {false, true}) {
      if (passed.size() == 0) break;
      Buffer<scalar_t> dx_again(dx.size()), dresidual_again(dresidual.size());
      backward(without, passed.data(), shared, dx_again, dresidual_again);
      expect_same(what + " dx by bits", dx_again, dx);
      expect_same(what + " dresidual by bits", dresidual_again, dresidual);
    }
    record(passed);
  }
  record(y);
  record(mean);
  record(m2);
  record(dx);
  record(dresidual);

  const double size = static_cast<double>(shape.s());
  for (size_t row = 0; row < shape.rows(); ++row) {
    const int64_t channel = static_cast<int64_t>(row) % shape.c;
    std::vector<double> pooled(static_cast<size_t>(out_shape.s()));
    long double sum = 0, square = 0;  // a second opinion on double needs more than double
    for (int64_t s = 0; s < shape.s(); ++s) sum += x.value(shape.index(row, s));
    for (int64_t s = 0; s < shape.s(); ++s) {
      const size_t at = shape.index(row, s);
      square += std::pow(x.value(at) - sum / size, 2.0L);
      const double before = k.value(channel) * x.value(at) + h.value(channel) +
                            (with.residual ? residual.value(at) : 0.0);
      const int64_t output = output_of(shape, s, with.pool);
      const double share = with.pool ? 0.25 : 1.0;
      if (output >= 0)
        pooled[static_cast<size_t>(output)] += share * (with.relu ? std::max(before, 0.0) : before);
      const bool passes = !with.relu || before > 0;
      const double grad =
          output >= 0 && passes ? share * grad_y.value(out_shape.index(row, output)) : 0.0;
      // Where the kernel's own rounding decides on the sign, either mask is right.
      if (with.relu && std::fabs(before) < 1e-6) continue;
      if (with.residual)
        expect_close(what + " dresidual", at, dresidual.value(at), grad,
                     stored * std::fabs(grad) + 0x1p-25);
      const double from_mean = grad_mean.value(row) / size;
      const double from_m2 = 2 * grad_m2.value(row) * (x.value(at) - mean.value(row));
      const double expected = k.value(channel) * grad + from_mean + from_m2;
      expect_close(
          what + " dx", at, dx.value(at), expected,
          stored * std::fabs(expected) + 0x1p-25 +
              4 * rounding * (std::fabs(grad) + std::fabs(from_mean) + std::fabs(from_m2)));
    }
    for (int64_t s = 0; s < out_shape.s(); ++s) {
      const size_t at = out_shape.index(row, s);
      expect_close(what + " y", at, y.value(at), pooled[s],
                   stored * std::fabs(pooled[s]) + 8 * rounding + 0x1p-25);
    }
    const double row_mean = static_cast<double>(sum / size);
    const double sd = std::sqrt(static_cast<double>(square) / size);
    expect_close(what + " mean", row, mean.value(row), row_mean,
                 0x1p-51 * std::fabs(row_mean) + 2 * rounding * sd);
    expect_close(what + " m2", row, m2.value(row), static_cast<double>(square),
                 8 * rounding * static_cast<double>(square) + 1e-14);
  }
}

template <typename scalar_t>
void check_all() {
  const Shape shapes[] = {
      {2, 3, 4, 4, false},  {1, 3, 8, 8, false}, {1, 2, 16, 16, false}, {1, 2, 32, 32, false},
      {2, 3, 7, 7, false},  {1, 2, 5, 8, false}, {1, 1, 64, 48, false}, {2, 8, 4, 4, true},
      {1, 16, 7, 7, true},  {2, 3, 5, 6, true},  {1, 8, 24, 24, true},  {1, 2, 2, 1, false},
      {1, 8, 1, 3, true},   {0, 2, 4, 4, false}, {1, 1, 3, 2, false},   {3, 70, 7, 7, false},
      {2, 40, 7, 7, false}, {1, 24, 3, 5, true}, {1, 2, 15, 18, false},
  };
  for (const Shape& shape : shapes)
    for (const Switches with : {Switches{false, true, false}, Switches{true, true, false},
                                Switches{false, true, true}, Switches{true, false, true}})
      check<scalar_t>(shape, with);
  check<scalar_t>({1, 2, 8, 8, false}, {false, false, false}, true);
  check<scalar_t>({1, 8, 4, 4, true}, {false, false, true}, true);
}

}  // namespace

void test_bn_act_moments() {
  check_all<float>();
  check_all<__half>();
  check_all<__nv_bfloat16>();
  check_all<double>();
}
