// row_moments and its backward against double, for shapes that reach every path of the launcher.

#include <algorithm>
#include <cmath>

#include "harness.h"

namespace {

using namespace harness;

struct Expected {
  std::vector<double> mean, m2;
};

template <typename scalar_t>
Expected moments(const Shape& shape, const Buffer<scalar_t>& x) {
  Expected expected;
  for (size_t row = 0; row < shape.rows(); ++row) {
    long double sum = 0, m2 = 0;  // a second opinion on double needs more than double
    for (int64_t s = 0; s < shape.s(); ++s) sum += x.value(shape.index(row, s));
    const long double mean = sum / shape.s();
    for (int64_t s = 0; s < shape.s(); ++s) {
      const long double gap = x.value(shape.index(row, s)) - mean;
      m2 += gap * gap;
    }
    expected.mean.push_back(static_cast<double>(mean));
    expected.m2.push_back(static_cast<double>(m2));
  }
  return expected;
}

// Runs the operator on x, compares with double, returns the means: right to two roundings of the
// spread of their row, whatever the elements are that the kernels start from.
template <typename scalar_t>
Buffer<double> check_moments(const std::string& what, const Shape& shape,
                             const Buffer<scalar_t>& x) {
  const double rounding = kRounding<ltdd::cuda::acc_type<scalar_t>>;
  const Activation a = shape.activation(type_of<scalar_t>);
  Buffer<double> mean(shape.rows()), m2(shape.rows());
  Buffer<char> scratch(ltdd::cuda::row_moments_scratch_bytes(a));
  ltdd::cuda::row_moments(a, x.data(), mean.data(), m2.data(), scratch.data(), nullptr);
  record(mean);
  record(m2);
  const Expected expected = moments(shape, x);
  for (size_t row = 0; row < shape.rows(); ++row) {
    const double sd = std::sqrt(expected.m2[row] / static_cast<double>(shape.s()));
    expect_close(what + " mean", row, mean.value(row), expected.mean[row],
                 0x1p-51 * std::fabs(expected.mean[row]) + 2 * rounding * sd);
    expect_close(what + " m2", row, m2.value(row), expected.m2[row],
                 8 * rounding * expected.m2[row]);
  }
  return mean;
}

template <typename scalar_t>
std::string name_of(const Shape& shape) {
  return "row_moments " + shape.text() + " type " +
         std::to_string(static_cast<int>(type_of<scalar_t>));
}

template <typename scalar_t>
void check(const Shape& shape, double center, bool shifted) {
  const std::string what = name_of<scalar_t>(shape);
  const double rounding = kRounding<ltdd::cuda::acc_type<scalar_t>>;
  const Activation a = shape.activation(type_of<scalar_t>);
  const auto x = numbers<scalar_t>(1, shape.elements(), center, 1.0, shifted);
  const auto mean = check_moments(what, shape, x);

  const auto grad_mean = numbers<double>(2, shape.rows());
  const auto grad_m2 = numbers<double>(3, shape.rows());
  Buffer<scalar_t> dx(shape.elements(), shifted);
  ltdd::cuda::row_moments_backward(a, grad_mean.data(), grad_m2.data(), x.data(), mean.data(),
                                   dx.data(), nullptr);
  record(dx);
  for (size_t row = 0; row < shape.rows(); ++row)
    for (int64_t s = 0; s < shape.s(); ++s) {
      const size_t at = shape.index(row, s);
      const double one = grad_mean.value(row) / static_cast<double>(shape.s());
      const double two = 2 * grad_m2.value(row) * (x.value(at) - mean.value(row));
      expect_close(what + " dx", at, dx.value(at), one + two,
                   kRounding<scalar_t> * std::fabs(one + two) +
                       4 * rounding * (std::fabs(one) + std::fabs(two)) + 0x1p-25);
    }
}

template <typename scalar_t>
void check_all() {
  // Lanes per row 2, 4, 8, 16, 32; several warps per row; rows that are no multiple of a vector;
  // NHWC with whole and odd channels, with splits, with one pixel.
  const Shape shapes[] = {
      {3, 5, 4, 4, false},   {2, 3, 4, 6, false},   {1, 3, 8, 8, false},    {1, 2, 12, 12, false},
      {1, 2, 16, 16, false}, {1, 3, 32, 32, false}, {1, 2, 56, 56, false},  {2, 3, 7, 7, false},
      {3, 4, 1, 1, false},   {1, 1, 1, 2, false},   {1, 1, 1, 1027, false}, {0, 3, 4, 4, false},
      {1, 1, 96, 96, false}, {2, 19, 7, 7, false},  {3, 5, 1, 3, false},    {1, 3, 14, 14, false},
      {1, 2, 15, 17, false}, {2, 0, 4, 4, false},   {3, 8, 4, 4, true},     {2, 16, 7, 7, true},
      {2, 3, 5, 5, true},    {1, 20, 6, 6, true},   {1, 64, 16, 16, true},  {1, 8, 40, 40, true},
      {3, 4, 1, 1, true},    {1, 1, 1, 9, true},    {1, 264, 3, 3, true},
  };
  for (const Shape& shape : shapes) check<scalar_t>(shape, 0.25, false);
  for (const Shape& shape : {Shape{2, 3, 8, 8, false}, Shape{2, 8, 8, 8, true}})
    check<scalar_t>(shape, 0.25, true);
}

// Elements far from all the others, among them the first, which the kernels start from.
template <typename scalar_t>
void check_far_elements() {
  for (const bool channels_last : {false, true})
    for (const Shape& shape :
         {Shape{1, 1, 3, 2, channels_last}, Shape{2, 19, 7, 7, channels_last},
          Shape{1, 13, 9, 13, channels_last}, Shape{1, 4, 12, 12, channels_last},
          Shape{1, 8, 32, 32, channels_last}, Shape{1, 2, 80, 80, channels_last}})
      for (const double far : {8.0, 3e3})
        for (const int64_t period : {shape.s(), shape.s() / 3, int64_t{5}}) {
          auto x = numbers<scalar_t>(6, shape.elements(), 0.25);
          const auto distant = numbers<scalar_t>(7, shape.elements(), far, 0.01);
          for (size_t row = 0; row < shape.rows(); ++row)
            for (int64_t s = 0; s < shape.s(); s += period)
              x[shape.index(row, s)] = distant[shape.index(row, s)];
          check_moments(name_of<scalar_t>(shape) + " with far elements", shape, x);
        }
}

// 1e5 standard deviations from zero: the pivot must save the variance.
void check_offset() {
  for (const bool channels_last : {false, true})
    for (const int side : {4, 7, 32})
      check<float>({1, 4, side, side, channels_last}, 57735.0, false);
}

// A sample's moments are the same bits in a batch of three and alone.
void check_batching() {
  for (const Shape& batch : {Shape{3, 16, 40, 40, true}, Shape{3, 12, 7, 7, true},
                             Shape{3, 5, 7, 7, false}, Shape{3, 5, 40, 40, false}}) {
    Shape alone = batch;
    alone.n = 1;
    const auto x = numbers<float>(5, batch.elements());
    Buffer<double> mean(batch.rows()), m2(batch.rows());
    const auto run = [&](const Shape& shape, const float* from, double* to_mean, double* to_m2) {
      const Activation a = shape.activation(Type::kFloat32);
      Buffer<char> scratch(ltdd::cuda::row_moments_scratch_bytes(a));
      ltdd::cuda::row_moments(a, from, to_mean, to_m2, scratch.data(), nullptr);
    };
    run(batch, x.data(), mean.data(), m2.data());
    for (int64_t n = 0; n < 3; ++n) {
      Buffer<float> own(alone.elements());
      Buffer<double> own_mean(alone.rows()), own_m2(alone.rows());
      std::copy_n(x.data() + n * own.size(), own.size(), own.data());
      run(alone, own.data(), own_mean.data(), own_m2.data());
      for (int64_t c = 0; c < alone.c; ++c)
        expect(own_mean[c] == mean[n * alone.c + c] && own_m2[c] == m2[n * alone.c + c],
               "a sample's moments do not depend on its batch: " + batch.text());
    }
  }
}

// In rows of one part and of several: chunks, warps, threads, blocks.
void check_not_finite() {
  for (const bool channels_last : {false, true})
    for (const int side : {4, 64, 80, 112})
      for (const int place : {0, 5})
        for (const float value : {-INFINITY, NAN}) {
          const Shape shape{1, 2, side, side, channels_last};
          const Activation a = shape.activation(Type::kFloat32);
          auto x = numbers<float>(4, shape.elements());
          x[shape.index(1, place)] = value;
          Buffer<double> mean(2), m2(2);
          Buffer<char> scratch(ltdd::cuda::row_moments_scratch_bytes(a));
          ltdd::cuda::row_moments(a, x.data(), mean.data(), m2.data(), scratch.data(), nullptr);
          expect(std::isfinite(mean[0]) && std::isfinite(m2[0]), "a finite row stays finite");
          expect_close("mean of a row that is not finite, " + shape.text(), place, mean[1], value,
                       0);
          expect(std::isnan(m2[1]), "m2 of a row that is not finite is NaN");
        }
}

// Four of these add up to infinity.
template <typename scalar_t>
void check_huge() {
  for (const bool channels_last : {false, true}) {
    const Shape shape{1, 8, 12, 12, channels_last};
    Buffer<scalar_t> x(shape.elements());
    for (size_t i = 0; i < x.size(); ++i) x[i] = ltdd::cuda::narrow<scalar_t>(3e38f);
    check_moments(name_of<scalar_t>(shape) + " of huge numbers", shape, x);
  }
}

}  // namespace

void test_row_moments() {
  check_all<float>();
  check_all<__half>();
  check_all<__nv_bfloat16>();
  check_all<double>();
  check_far_elements<float>();
  check_far_elements<__half>();
  check_far_elements<__nv_bfloat16>();
  check_offset();
  check_batching();
  check_huge<float>();
  check_huge<__nv_bfloat16>();
  check_not_finite();
}
