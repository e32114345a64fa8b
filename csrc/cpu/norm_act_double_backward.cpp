// norm_act_double_backward: the gradient of norm_act's gradient, which matching of gradients and of
// trajectories takes.
//
// Given the gradients a, p and q of dx, grad_weight and grad_bias. With r = rsqrt(var + eps),
// n = r (x - mean), k = weight r, g = mask unpool(grad_y), and E the mean over the M elements that
// share a mean:
//
//   gg_y = pool(mask (k (a - E a - n E[a n]) + p n + q))
//   dx = A a + B g - A E a - B E g + D n,   A = -k r E[g n],   B = r p - k r E[a n],
//     D = k r (3 E[a n] E[g n] + E a E g - E[a g]) - r p E[g n]
//   grad_weight = sum r M (E[a g] - E a E g - E[a n] E[g n]),   of bias it is 0
//
// Five sums of a row say it all. Traffic as in norm_act_backward, with a beside grad_y and gg_y
// beside dx: two passes, and over images the second one finds all in the cache. Tasks are whole
// rows, and sums over images are taken in their order: no result depends on the number of threads.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "fused.h"
#include "norms.h"

namespace ltdd {
namespace {

// Sums of rows, [N, C], and what follows from them.
struct Row {
  double g, gx, a, ax, ag;
};

class Coefficients {
 public:
  explicit Coefficients(int64_t rows)
      : from_a(static_cast<size_t>(rows)),
        from_g(static_cast<size_t>(rows)),
        grad_mean(static_cast<size_t>(rows)),
        grad_m2(static_cast<size_t>(rows)),
        y_grad_mean(static_cast<size_t>(rows)),
        y_grad_m2(static_cast<size_t>(rows)) {}

  // From the sums over the `elements` that share the row's mean; returns what they add to
  // grad_weight. r and k are those of the norm, p and q the gradients of grad_weight and grad_bias.
  double set(int64_t row, const Row& sum, double elements, double size, double r, double k,
             double p, double q) {
    const double g = sum.g / elements, gn = r * sum.gx / elements;
    const double a = sum.a / elements, an = r * sum.ax / elements, ag = sum.ag / elements;
    const double to_a = -k * r * gn, to_g = r * p - k * r * an;
    const double to_n = k * r * (3.0 * an * gn + a * g - ag) - r * p * gn;
    from_a[row] = to_a;
    from_g[row] = to_g;
    // As gradients of row moments: shift = grad_mean / S, slope by x - mean = 2 grad_m2.
    grad_mean[row] = -(to_a * a + to_g * g) * size;
    grad_m2[row] = to_n * r / 2.0;
    y_grad_mean[row] = (q - k * a) * size;
    y_grad_m2[row] = (p - k * an) * r / 2.0;
    return r * elements * (ag - a * g - an * gn);
  }

  std::vector<double> from_a, from_g, grad_mean, grad_m2, y_grad_mean, y_grad_m2;
};

std::tuple<Tensor, Tensor, Tensor> norm_act_double_backward_cpu(
    const Tensor& gg_x, const Tensor& gg_weight, const Tensor& gg_bias, const Tensor& grad_y,
    const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& m2,
    bool per_image, double eps, int64_t act, int64_t pool) {
  const char* op = "norm_act_double_backward";
  const Activation a = as_activation(op, x);
  const Image image = check_fused(op, a, act, pool);
  check_vector(op, "weight", weight, a.c);
  check_vector(op, "bias", bias, a.c);
  check_vector(op, "gg_weight", gg_weight, a.c);
  check_vector(op, "gg_bias", gg_bias, a.c);
  check_matrix(op, "mean", mean, a.n, a.c);
  check_matrix(op, "m2", m2, a.n, a.c);
  const Kernels& run = kernels(storage_of(op, x));
  const Tensor means = contiguous_as(mean, ScalarType::Double);
  const Tensor m2s = contiguous_as(m2, ScalarType::Double);
  const Tensor to_weight = contiguous_as(gg_weight, ScalarType::Double);
  const Tensor to_bias = contiguous_as(gg_bias, ScalarType::Double);
  const Image out = pool == 2 ? Image{image.height / 2, image.width / 2} : image;
  const Tensor grads = in_layout_of(op, "grad_y", a, out, grad_y);
  const Tensor others = in_layout_of(op, "gg_x", a, image, gg_x);
  const Tensor dx = empty_like(a);
  const Tensor gg_y = pool == 2 ? empty_images(a, out.height, out.width) : empty_like(a);
  Tensor grad_weight = new_empty(a.tensor, {&a.c, 1}, ScalarType::Double);
  torch::stable::fill_(grad_weight, 0.0);
  if (a.tensor.numel() > 0) {
    const int64_t rows = a.n * a.c;
    const double size = static_cast<double>(a.s);
    Norms norms(a, weight, bias, per_image, eps);
    Coefficients found(rows);
    std::vector<double> sum_g(static_cast<size_t>(rows)), sum_gx(sum_g), sum_a(sum_g),
        sum_ax(sum_g), sum_ag(sum_g), weights(sum_g);
    const BnActBackwardArgs pass{found.grad_mean.data(),
                                 found.grad_m2.data(),
                                 norms.center,
                                 grads.const_data_ptr(),
                                 a.tensor.const_data_ptr(),
                                 nullptr,
                                 norms.k,
                                 norms.h,
                                 a.n,
                                 a.c,
                                 image.height,
                                 image.width,
                                 act == 1,
                                 pool == 2,
                                 worth_streaming(dx),
                                 per_image,
                                 dx.mutable_data_ptr(),
                                 nullptr};
    const NormSumsArgs sums{pass,         sum_g.data(),  sum_gx.data(), others.const_data_ptr(),
                            sum_a.data(), sum_ax.data(), sum_ag.data()};
    const NormDoubleArgs args{pass,
                              others.const_data_ptr(),
                              found.from_a.data(),
                              found.from_g.data(),
                              found.y_grad_mean.data(),
                              found.y_grad_m2.data(),
                              gg_y.mutable_data_ptr()};
    const double *const p = const_row_data(to_weight), *const q = const_row_data(to_bias);
    const double *const from_mean = const_row_data(means), *const from_m2 = const_row_data(m2s);
    const auto set = [&](int64_t row, const Row& sum, double elements) {
      const int64_t c = row % a.c;
      const double r = norms.inverse_sd[row];
      return found.set(row, sum, elements, size, r, norms.weight[c] * r, p[c], q[c]);
    };
    const auto sums_of = [&](int64_t row) {
      return Row{sum_g[row], sum_gx[row], sum_a[row], sum_ax[row], sum_ag[row]};
    };
    const auto sum_up = [&](int64_t first, int64_t last) {
      run_block(a, run.norm_sums_rows, run.norm_sums_pixels, sums, first, last);
    };
    const auto write = [&](int64_t first, int64_t last) {
      run_block(a, run.norm_double_rows, run.norm_double_pixels, args, first, last);
    };
    double* const dw = row_data(grad_weight);
    if (per_image) {
      for_each_block(a, [&](int64_t first, int64_t last) {
        norms.find(from_mean, from_m2, first, last);
        sum_up(first, last);
        for (int64_t row = first; row < last; ++row) weights[row] = set(row, sums_of(row), size);
        write(first, last);
      });
      for (int64_t row = 0; row < rows; ++row) dw[row % a.c] += weights[row];
    } else {
      norms.find(from_mean, from_m2, 0, rows);
      for_each_block(a, sum_up);
      for (int64_t c = 0; c < a.c; ++c) {
        Row whole{};
        for (int64_t row = c; row < rows; row += a.c) {
          const Row one = sums_of(row);
          whole.g += one.g;
          whole.gx += one.gx;
          whole.a += one.a;
          whole.ax += one.ax;
          whole.ag += one.ag;
        }
        for (int64_t row = c; row < rows; row += a.c)
          dw[c] = set(row, whole, size * static_cast<double>(a.n));
      }
      for_each_block(a, write);
    }
  }
  return {gg_y, dx, contiguous_as(grad_weight, weight.scalar_type())};
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("norm_act_double_backward", TORCH_BOX(&ltdd::norm_act_double_backward_cpu));
}
