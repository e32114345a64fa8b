// norm_act: y = pool(act(norm(x))) with the statistics of x itself, as training needs it, and its
// gradient in x, weight and bias.
//
// Equations: common/norm.h, with g = mask unpool(grad_y); mean and var are those of a channel over
// the batch or over each image by itself. dx has the form of bn_act_moments_backward and is
// computed by its loops. Traffic over the batch: forward reads x twice and writes y, backward reads
// x and grad_y twice and writes dx. Over images the second reading finds x in the cache. Tasks are
// whole rows, and sums over images are taken in their order, so results do not depend on the number
// of threads.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/norm.h"
#include "fused.h"
#include "norms.h"

namespace ltdd {
namespace {

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
                       norms.k,
                       norms.h,
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
  Tensor grad_weight = new_empty(a.tensor, {&a.c, 1}, ScalarType::Double);
  Tensor grad_bias = new_empty(a.tensor, {&a.c, 1}, ScalarType::Double);
  torch::stable::fill_(grad_weight, 0.0);
  torch::stable::fill_(grad_bias, 0.0);
  if (a.tensor.numel() > 0) {
    Norms norms(a, weight, bias, per_image, eps);
    const Tensor grad_mean = empty_rows(a), grad_m2 = empty_rows(a);
    std::vector<double> sum_g(static_cast<size_t>(rows)), sum_gx(static_cast<size_t>(rows));
    const NormSumsArgs sums{
        {const_row_data(grad_mean), const_row_data(grad_m2), norms.center, grads.const_data_ptr(),
         a.tensor.const_data_ptr(), nullptr, norms.k, norms.h, a.n, a.c, image.height, image.width,
         act == 1, pool == 2, worth_streaming(dx), per_image, dx.mutable_data_ptr(), nullptr},
        sum_g.data(),
        sum_gx.data(),
        nullptr,
        nullptr,
        nullptr,
        nullptr};
    const double size = static_cast<double>(a.s);
    double *const to_mean = row_data(grad_mean), *const to_m2 = row_data(grad_m2);
    // What the sums over a mean's M elements contribute to dx, as gradients of row moments.
    const auto through_statistics = [&](int64_t row, double sum, double sum_x, double elements) {
      const auto [shift, slope] =
          norm_pullback(norms.at(row), norms.weight[row % a.c], sum, sum_x, elements);
      to_mean[row] = shift * size;
      to_m2[row] = slope / 2.0;
    };
    const auto sum_up = [&](int64_t first, int64_t last) {
      run_block(a, run.norm_sums_rows, run.norm_sums_pixels, sums, first, last);
    };
    const auto write_dx = [&](int64_t first, int64_t last) {
      run_block(a, run.bn_act_backward_rows, run.bn_act_backward_pixels, sums.pass, first, last);
    };
    const double *const from_mean = const_row_data(means), *const from_m2 = const_row_data(m2s);
    if (per_image) {
      for_each_block(a, [&](int64_t first, int64_t last) {
        norms.find(from_mean, from_m2, first, last);
        sum_up(first, last);
        for (int64_t row = first; row < last; ++row)
          through_statistics(row, sums.sum_g[row], sums.sum_gx[row], size);
        write_dx(first, last);
      });
    } else {
      norms.find(from_mean, from_m2, 0, rows);
      for_each_block(a, sum_up);
    }
    double *const db = row_data(grad_bias), *const dw = row_data(grad_weight);
    for (int64_t row = 0; row < rows; ++row) {
      db[row % a.c] += sums.sum_g[row];
      dw[row % a.c] += sums.sum_gx[row] * norms.inverse_sd[row];
    }
    if (!per_image) {
      const double elements = size * static_cast<double>(a.n);
      for (int64_t row = 0; row < rows; ++row)
        through_statistics(row, db[row % a.c], dw[row % a.c] / norms.inverse_sd[row], elements);
      for_each_block(a, write_dx);
    }
  }
  return {dx, contiguous_as(grad_weight, weight.scalar_type()),
          contiguous_as(grad_bias, bias.scalar_type())};
}

// What a process adds to the sums of a batch that several share (ltdd_ext.synced_norm_act): of
// every row sum g and sum g (x - mean), with k, h and mean those of the whole batch.
std::tuple<Tensor, Tensor> norm_act_sums_cpu(const Tensor& grad_y, const Tensor& x, const Tensor& k,
                                             const Tensor& h, const Tensor& mean, int64_t act,
                                             int64_t pool) {
  const char* op = "norm_act_sums";
  const Activation a = as_activation(op, x);
  const Image image = check_fused(op, a, act, pool);
  check_vector(op, "k", k, a.c);
  check_vector(op, "h", h, a.c);
  check_matrix(op, "mean", mean, a.n, a.c);
  const Kernels& run = kernels(storage_of(op, x));
  const ScalarType acc_type = acc_dtype(x.scalar_type());
  const Tensor scale = contiguous_as(k, acc_type), offset = contiguous_as(h, acc_type);
  const Tensor means = contiguous_as(mean, ScalarType::Double);
  const Image out = pool == 2 ? Image{image.height / 2, image.width / 2} : image;
  const Tensor grads = in_layout_of(op, "grad_y", a, out, grad_y);
  Tensor sum_g = empty_rows(a), sum_gx = empty_rows(a);
  if (a.tensor.numel() == 0) {
    torch::stable::fill_(sum_g, 0.0);
    torch::stable::fill_(sum_gx, 0.0);
    return {sum_g, sum_gx};
  }
  const NormSumsArgs args{
      {nullptr, nullptr, const_row_data(means), grads.const_data_ptr(), a.tensor.const_data_ptr(),
       nullptr, scale.const_data_ptr(), offset.const_data_ptr(), a.n, a.c, image.height,
       image.width, act == 1, pool == 2, false, false, nullptr, nullptr},
      row_data(sum_g),
      row_data(sum_gx),
      nullptr,
      nullptr,
      nullptr,
      nullptr};
  run_blocks(a, run.norm_sums_rows, run.norm_sums_pixels, args);
  return {sum_g, sum_gx};
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("norm_act", TORCH_BOX(&ltdd::norm_act_cpu));
  m.impl("norm_act_backward", TORCH_BOX(&ltdd::norm_act_backward_cpu));
  m.impl("norm_act_sums", TORCH_BOX(&ltdd::norm_act_sums_cpu));
}
