// norm_act: y = pool(act(norm(x))) with the statistics of x itself, as training needs it, and its
// gradient in x, weight and bias.
//
// The norm is k x + h with k = weight r, h = bias - mean k, r = rsqrt(var + eps); mean and var are
// those of a channel over the batch or over each image by itself. With g = mask unpool(grad_y) and
// sums over the M elements that share a mean:
//
//   grad_bias = sum g,   grad_weight = r sum g (x - mean)
//   dx = k g - k / M sum g - k r^2 / M (x - mean) sum g (x - mean)
//
// dx has the form of bn_act_moments_backward and is computed by its loops. Traffic over the batch:
// forward reads x twice and writes y, backward reads x and grad_y twice and writes dx. Over images
// the second reading finds x in the cache. Tasks are whole rows, and sums over images are taken in
// their order, so results do not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "fused.h"

namespace ltdd {
namespace {

// Calls body(first, last) for blocks of rows, row = sample * C + channel; in NHWC of one sample.
template <typename Body>
void for_each_block(const Activation& a, const Body& body) {
  if (a.layout == Layout::kRows)
    for_each_row_block(a, body);
  else
    for_each_channel_block(a, [&](int64_t sample, int64_t begin, int64_t end) {
      body(sample * a.c + begin, sample * a.c + end);
    });
}

// Calls the kernel of the layout for such a block.
template <typename Args>
void run_block(const Activation& a, void (*rows)(const Args&, int64_t, int64_t),
               void (*pixels)(const Args&, int64_t, int64_t, int64_t), const Args& args,
               int64_t first, int64_t last) {
  if (a.layout == Layout::kRows) return rows(args, first, last);
  const int64_t sample = first / a.c;
  pixels(args, sample, first - sample * a.c, last - sample * a.c);
}

// The norm of every row: what is subtracted, 1 / standard deviation, and both as scale and offset.
class Norms {
 public:
  Norms(const Activation& a, const Tensor& weight, const Tensor& bias, bool per_image, double eps)
      : a_(a),
        weight_(contiguous_as(weight, ScalarType::Double)),
        bias_(contiguous_as(bias, ScalarType::Double)),
        per_image_(per_image),
        eps_(eps),
        center(empty_rows(a)),
        inverse_sd(static_cast<size_t>(a.n * a.c)),
        k(scales()),
        h(scales()) {}

  // From the row moments of [first, last); over the batch, from all of them.
  void find(const double* mean, const double* m2, int64_t first, int64_t last) {
    const double size = static_cast<double>(a_.s);
    if (per_image_) {
      for (int64_t row = first; row < last; ++row) {
        set(row, mean[row], m2[row] / size);
        set_scale(row, row);
      }
      return;
    }
    for (int64_t c = 0; c < a_.c; ++c) {
      double batch_mean = 0.0, batch_m2 = 0.0;
      for (int64_t row = c; row < last; row += a_.c) batch_mean += mean[row];
      batch_mean /= static_cast<double>(a_.n);
      for (int64_t row = c; row < last; row += a_.c) {
        const double gap = mean[row] - batch_mean;
        batch_m2 += m2[row] + size * gap * gap;
      }
      const double var = batch_m2 / (size * static_cast<double>(a_.n));
      for (int64_t row = c; row < last; row += a_.c) set(row, batch_mean, var);
      set_scale(c, c);
    }
  }

  double weight_of(int64_t row) const { return const_row_data(weight_)[row % a_.c]; }

 private:
  Tensor scales() const {
    const int64_t length = per_image_ ? a_.n * a_.c : a_.c;
    return torch::stable::new_empty(a_.tensor, {&length, 1}, acc_dtype(a_.tensor.scalar_type()));
  }

  void set(int64_t row, double mean, double var) {
    row_data(center)[row] = mean;
    inverse_sd[static_cast<size_t>(row)] = 1.0 / std::sqrt(var + eps_);
  }

  void set_scale(int64_t at, int64_t row) {
    const double scale = weight_of(row) * inverse_sd[static_cast<size_t>(row)];
    const double offset = const_row_data(bias_)[row % a_.c] - row_data(center)[row] * scale;
    if (k.scalar_type() == ScalarType::Double) {
      static_cast<double*>(k.mutable_data_ptr())[at] = scale;
      static_cast<double*>(h.mutable_data_ptr())[at] = offset;
    } else {
      static_cast<float*>(k.mutable_data_ptr())[at] = static_cast<float>(scale);
      static_cast<float*>(h.mutable_data_ptr())[at] = static_cast<float>(offset);
    }
  }

  const Activation& a_;
  const Tensor weight_, bias_;
  const bool per_image_;
  const double eps_;

 public:
  Tensor center;                   // [N, C]
  std::vector<double> inverse_sd;  // [N, C]
  Tensor k, h;                     // [C] or [N, C]
};

std::tuple<Tensor, Tensor, Tensor> norm_act_cpu(const Tensor& x, const Tensor& weight,
                                                const Tensor& bias, bool per_image, double eps,
                                                int64_t act, int64_t pool) {
  const char* op = "norm_act";
  const Activation a = as_activation(op, x);
  const Image image = check_fused(op, a, act, pool);
  check_vector(op, "weight", weight, a.c);
  check_vector(op, "bias", bias, a.c);
  const Kernels& run = kernels(storage_of(op, x));
  const Tensor y = pool == 2 ? empty_images(a, image.height / 2, image.width / 2) : empty_like(a);
  const Tensor mean = empty_rows(a), m2 = empty_rows(a);
  if (a.tensor.numel() == 0) {
    fill_empty_rows(mean, m2);
    return {y, mean, m2};
  }
  Norms norms(a, weight, bias, per_image, eps);
  const MomentsArgs moments{a.tensor.const_data_ptr(), a.n, a.c, a.s, row_data(mean), row_data(m2)};
  const BnActArgs args{a.tensor.const_data_ptr(),
                       nullptr,
                       norms.k.const_data_ptr(),
                       norms.h.const_data_ptr(),
                       a.n,
                       a.c,
                       image.height,
                       image.width,
                       act == 1,
                       pool == 2,
                       worth_streaming(y),
                       per_image,
                       y.mutable_data_ptr(),
                       nullptr,
                       nullptr};
  const auto measure = [&](int64_t first, int64_t last) {
    run_block(a, run.moments_rows, run.moments_pixels, moments, first, last);
  };
  const auto apply = [&](int64_t first, int64_t last) {
    run_block(a, run.bn_act_rows, run.bn_act_pixels, args, first, last);
  };
  if (per_image) {
    for_each_block(a, [&](int64_t first, int64_t last) {
      measure(first, last);
      norms.find(moments.mean, moments.m2, first, last);
      apply(first, last);
    });
  } else {
    for_each_block(a, measure);
    norms.find(moments.mean, moments.m2, 0, a.n * a.c);
    for_each_block(a, apply);
  }
  return {y, mean, m2};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_backward_cpu(const Tensor& grad_y, const Tensor& x,
                                                         const Tensor& weight, const Tensor& bias,
                                                         const Tensor& mean, const Tensor& m2,
                                                         bool per_image, double eps, int64_t act,
                                                         int64_t pool) {
  const char* op = "norm_act_backward";
  const Activation a = as_activation(op, x);
  const Image image = check_fused(op, a, act, pool);
  check_vector(op, "weight", weight, a.c);
  check_vector(op, "bias", bias, a.c);
  check_matrix(op, "mean", mean, a.n, a.c);
  check_matrix(op, "m2", m2, a.n, a.c);
  const Kernels& run = kernels(storage_of(op, x));
  const Tensor means = contiguous_as(mean, ScalarType::Double);
  const Tensor m2s = contiguous_as(m2, ScalarType::Double);
  const Image out = pool == 2 ? Image{image.height / 2, image.width / 2} : image;
  const Tensor grads = in_layout_of(op, "grad_y", a, out, grad_y);
  const Tensor dx = empty_like(a);
  const int64_t rows = a.n * a.c;
  Tensor grad_weight = torch::stable::new_empty(a.tensor, {&a.c, 1}, ScalarType::Double);
  Tensor grad_bias = torch::stable::new_empty(a.tensor, {&a.c, 1}, ScalarType::Double);
  torch::stable::fill_(grad_weight, 0.0);
  torch::stable::fill_(grad_bias, 0.0);
  if (a.tensor.numel() > 0) {
    Norms norms(a, weight, bias, per_image, eps);
    const Tensor grad_mean = empty_rows(a), grad_m2 = empty_rows(a);
    std::vector<double> sum_g(static_cast<size_t>(rows)), sum_gx(static_cast<size_t>(rows));
    const NormSumsArgs sums{
        {const_row_data(grad_mean), const_row_data(grad_m2), const_row_data(norms.center),
         grads.const_data_ptr(), a.tensor.const_data_ptr(), nullptr, norms.k.const_data_ptr(),
         norms.h.const_data_ptr(), a.n, a.c, image.height, image.width, act == 1, pool == 2,
         worth_streaming(dx), per_image, dx.mutable_data_ptr(), nullptr},
        sum_g.data(),
        sum_gx.data()};
    // What the sums over a mean's M elements contribute to dx, as gradients of row moments.
    const auto through_statistics = [&](int64_t row, double sum, double sum_x, double elements) {
      const double r = norms.inverse_sd[static_cast<size_t>(row)], k = norms.weight_of(row) * r;
      row_data(grad_mean)[row] = -k * sum / elements * static_cast<double>(a.s);
      row_data(grad_m2)[row] = -k * r * r * sum_x / elements / 2.0;
    };
    const auto sum_up = [&](int64_t first, int64_t last) {
      run_block(a, run.norm_sums_rows, run.norm_sums_pixels, sums, first, last);
    };
    const auto write_dx = [&](int64_t first, int64_t last) {
      run_block(a, run.bn_act_backward_rows, run.bn_act_backward_pixels, sums.pass, first, last);
    };
    const double size = static_cast<double>(a.s);
    if (per_image) {
      for_each_block(a, [&](int64_t first, int64_t last) {
        norms.find(const_row_data(means), const_row_data(m2s), first, last);
        sum_up(first, last);
        for (int64_t row = first; row < last; ++row)
          through_statistics(row, sums.sum_g[row], sums.sum_gx[row], size);
        write_dx(first, last);
      });
    } else {
      norms.find(const_row_data(means), const_row_data(m2s), 0, rows);
      for_each_block(a, sum_up);
    }
    for (int64_t row = 0; row < rows; ++row) {
      row_data(grad_bias)[row % a.c] += sums.sum_g[row];
      row_data(grad_weight)[row % a.c] +=
          sums.sum_gx[row] * norms.inverse_sd[static_cast<size_t>(row)];
    }
    if (!per_image) {
      for (int64_t row = 0; row < rows; ++row)
        through_statistics(
            row, const_row_data(grad_bias)[row % a.c],
            const_row_data(grad_weight)[row % a.c] / norms.inverse_sd[static_cast<size_t>(row)],
            size * static_cast<double>(a.n));
      for_each_block(a, write_dx);
    }
  }
  return {dx, contiguous_as(grad_weight, weight.scalar_type()),
          contiguous_as(grad_bias, bias.scalar_type())};
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("norm_act", TORCH_BOX(&ltdd::norm_act_cpu));
  m.impl("norm_act_backward", TORCH_BOX(&ltdd::norm_act_backward_cpu));
}
