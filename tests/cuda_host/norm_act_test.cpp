// norm_act and its backward against double: over the batch and over images, with and without ReLU
// and pooling, in both layouts, by vectors and element by element, odd and split planes included.

#include <cmath>

#include "harness.h"

namespace {

using namespace harness;
using ltdd::cuda::NormAct;

constexpr double kEps = 1e-3;

struct With {
  bool per_image, relu, pool;
};

// What one mean's elements have in common, in double.
struct Group {
  double mean = 0, inverse_sd = 0, sum_g = 0, sum_gx = 0, abs_g = 0, abs_gx = 0, elements = 0;
};

template <typename scalar_t>
void check(const Shape& shape, With with, bool shifted = false) {
  using acc_t = ltdd::cuda::acc_type<scalar_t>;
  const std::string what = "norm_act " + shape.text() + " type " +
                           std::to_string(static_cast<int>(type_of<scalar_t>)) +
                           (with.per_image ? " per image" : "") + (with.relu ? " relu" : "") +
                           (with.pool ? " pool" : "");
  const double rounding = kRounding<acc_t>, stored = kRounding<scalar_t>;
  const Activation a = shape.activation(type_of<scalar_t>);
  Shape out_shape = shape;
  if (with.pool) out_shape.h /= 2, out_shape.w /= 2;

  const auto x = numbers<scalar_t>(31, shape.elements(), 0.25, 1.0, shifted);
  const auto weight = numbers<acc_t>(32, shape.c, 0.75), bias = numbers<acc_t>(33, shape.c);
  const NormAct norm{weight.data(), bias.data(), kEps, with.per_image, with.relu, with.pool};
  Buffer<scalar_t> y(out_shape.elements());
  Buffer<double> mean(shape.rows()), m2(shape.rows());
  Buffer<double> scratch(ltdd::cuda::norm_act_scratch_bytes(a, norm) / sizeof(double) + 1);
  ltdd::cuda::norm_act(a, norm, x.data(), y.data(), mean.data(), m2.data(), scratch.data(),
                       nullptr);
  const auto grad_y = numbers<scalar_t>(34, out_shape.elements());
  Buffer<scalar_t> dx(shape.elements());
  Buffer<acc_t> grad_weight(shape.c), grad_bias(shape.c);
  Buffer<double> more(ltdd::cuda::norm_act_backward_scratch_bytes(a, norm) / sizeof(double) + 1);
  ltdd::cuda::norm_act_backward(a, norm, grad_y.data(), x.data(), mean.data(), m2.data(), dx.data(),
                                grad_weight.data(), grad_bias.data(), more.data(), nullptr);
  record(y);
  record(mean);
  record(m2);
  record(dx);
  record(grad_weight);
  record(grad_bias);
  if (shape.elements() == 0) return;

  const auto group_of = [&](size_t row) { return with.per_image ? row : row % shape.c; };
  std::vector<Group> groups(with.per_image ? shape.rows() : shape.c);
  const auto for_elements = [&](const auto& body) {
    for (size_t row = 0; row < shape.rows(); ++row)
      for (int64_t s = 0; s < shape.s(); ++s)
        body(row, s, groups[group_of(row)], x.value(shape.index(static_cast<int64_t>(row), s)));
  };
  for_elements([&](size_t, int64_t, Group& group, double value) {
    group.mean += value;
    group.elements += 1;
  });
  for (Group& group : groups) group.mean /= group.elements;
  for_elements([&](size_t, int64_t, Group& group, double value) {
    group.inverse_sd += (value - group.mean) * (value - group.mean);
  });
  for (Group& group : groups)
    group.inverse_sd = 1 / std::sqrt(group.inverse_sd / group.elements + kEps);

  const double share = with.pool ? 0.25 : 1.0;
  const auto before = [&](size_t row, const Group& group, double value) {
    const size_t c = row % shape.c;
    return weight.value(c) * group.inverse_sd * (value - group.mean) + bias.value(c);
  };
  const auto gradient = [&](size_t row, int64_t s, double at) {
    const int64_t output = output_of(shape, s, with.pool);
    if (output < 0 || (with.relu && !(at > 0))) return 0.0;
    return share * grad_y.value(out_shape.index(static_cast<int64_t>(row), output));
  };
  std::vector<double> pooled(out_shape.elements()), to_weight(shape.c), to_bias(shape.c),
      terms_weight(shape.c), terms_bias(shape.c), doubtful(groups.size());
  for_elements([&](size_t row, int64_t s, Group& group, double value) {
    const double at = before(row, group, value);
    const int64_t output = output_of(shape, s, with.pool);
    if (output >= 0)
      pooled[out_shape.index(static_cast<int64_t>(row), output)] +=
          share * (with.relu ? std::max(at, 0.0) : at);
    const double g = gradient(row, s, at), gap = value - group.mean;
    group.sum_g += g;
    group.sum_gx += g * gap;
    group.abs_g += std::fabs(g);
    group.abs_gx += std::fabs(g * gap);
    to_bias[row % shape.c] += g;
    to_weight[row % shape.c] += g * gap * group.inverse_sd;
    terms_bias[row % shape.c] += std::fabs(g);
    terms_weight[row % shape.c] += std::fabs(g * gap) * group.inverse_sd;
    // Where the kernel's own rounding decides on the sign, either mask is right.
    if (with.relu && std::fabs(at) < 1e-6) doubtful[group_of(row)] = 1;
  });
  for (size_t i = 0; i < pooled.size(); ++i)
    expect_close(what + " y", i, y.value(i), pooled[i],
                 stored * std::fabs(pooled[i]) + 32 * rounding + 0x1p-25);
  for (size_t c = 0; c < static_cast<size_t>(shape.c); ++c) {
    bool sure = true;
    for (size_t row = c; row < shape.rows(); row += shape.c)
      sure = sure && doubtful[group_of(row)] == 0;
    if (!sure) continue;
    expect_close(what + " grad_bias", c, grad_bias.value(c), to_bias[c],
                 8 * rounding * terms_bias[c] + 1e-14);
    expect_close(what + " grad_weight", c, grad_weight.value(c), to_weight[c],
                 16 * rounding * terms_weight[c] + 1e-14);
  }
  for_elements([&](size_t row, int64_t s, const Group& group, double value) {
    if (doubtful[group_of(row)] != 0) return;
    const double r = group.inverse_sd, k = weight.value(row % shape.c) * r;
    const double g = gradient(row, s, before(row, group, value)), gap = value - group.mean;
    const double expected =
        k * (g - group.sum_g / group.elements - r * r * gap * group.sum_gx / group.elements);
    const double terms = std::fabs(k) * (std::fabs(g) + group.abs_g / group.elements +
                                         r * r * std::fabs(gap) * group.abs_gx / group.elements);
    const size_t at = shape.index(static_cast<int64_t>(row), s);
    expect_close(what + " dx", at, dx.value(at), expected,
                 stored * std::fabs(expected) + 16 * rounding * terms + 0x1p-25);
  });
  for (size_t row = 0; row < shape.rows(); ++row) {
    long double sum = 0;  // a second opinion on double needs more than double
    for (int64_t s = 0; s < shape.s(); ++s)
      sum += x.value(shape.index(static_cast<int64_t>(row), s));
    expect_close(what + " mean", row, mean.value(row),
                 static_cast<double>(sum / static_cast<double>(shape.s())), 4 * rounding);
  }
}

template <typename scalar_t>
void check_all() {
  const Shape shapes[] = {
      {2, 3, 4, 4, false}, {3, 3, 8, 8, false},   {1, 2, 32, 32, false}, {5, 17, 7, 7, false},
      {2, 3, 5, 8, false}, {1, 1, 64, 96, false}, {2, 8, 4, 4, true},    {3, 40, 7, 7, true},
      {2, 3, 5, 6, true},  {1, 8, 40, 40, true},  {2, 2, 2, 2, false},   {33, 8, 2, 3, true},
      {0, 2, 4, 4, false}, {2, 3, 3, 7, false},
  };
  for (const Shape& shape : shapes)
    for (const bool per_image : {false, true})
      for (const bool pool : {false, true}) check<scalar_t>(shape, {per_image, !pool, pool});
  for (const bool per_image : {false, true}) {
    check<scalar_t>({2, 16, 6, 6, true}, {per_image, true, true});
    check<scalar_t>({2, 2, 8, 8, false}, {per_image, true, false}, true);
    check<scalar_t>({2, 8, 4, 4, true}, {per_image, false, true}, true);
  }
}

}  // namespace

void test_norm_act() {
  check_all<float>();
  check_all<__half>();
  check_all<__nv_bfloat16>();
  check_all<double>();
}
