// row_moments: mean and m2 of every (sample, channel), and its gradient.
//
//   mean[n,c] = sum_s x / S,   m2[n,c] = sum_s (x - mean)^2
//   dx = grad_mean / S + 2 grad_m2 (x - mean)
//
// This file checks, allocates and splits the work; the loops are in rows_kernels.h,
// pixels_kernels.h and elementwise_kernels.h. Traffic: forward reads x once, backward reads x and
// writes dx. A task computes whole rows, so results do not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "kernels.h"
#include "tensors.h"

namespace ltdd {

std::tuple<Tensor, Tensor> row_moments_cpu(const Tensor& x) {  // x (N, C, H, W) or (N, C, S)
  const Activation a = as_activation("row_moments", x);
  const Tensor mean = empty_rows(a), m2 = empty_rows(a);  // (N, C)
  const Kernels& run = kernels(storage_of("row_moments", x));
  if (a.tensor.numel() == 0) {
    fill_empty_rows(mean, m2);
    return {mean, m2};
  }
  const MomentsArgs args{a.tensor.const_data_ptr(), a.n, a.c, a.s, row_data(mean), row_data(m2)};
  run_blocks(a, run.moments_rows, run.moments_pixels, args);
  return {mean, m2};
}

namespace {

Tensor row_moments_backward_cpu(const Tensor& grad_mean, const Tensor& grad_m2, const Tensor& x,
                                const Tensor& mean) {
  const char* op = "row_moments_backward";
  const Activation a = as_activation(op, x);
  check_matrix(op, "grad_mean", grad_mean, a.n, a.c);
  check_matrix(op, "grad_m2", grad_m2, a.n, a.c);
  check_matrix(op, "mean", mean, a.n, a.c);
  const Kernels& run = kernels(storage_of(op, x));
  const Tensor grad_means = contiguous_as(grad_mean, ScalarType::Double);
  const Tensor grad_m2s = contiguous_as(grad_m2, ScalarType::Double);
  const Tensor means = contiguous_as(mean, ScalarType::Double);
  const Tensor dx = empty_like(a);
  if (a.tensor.numel() == 0) return dx;
  const MomentsBackwardArgs args{const_row_data(grad_means),
                                 const_row_data(grad_m2s),
                                 const_row_data(means),
                                 a.tensor.const_data_ptr(),
                                 a.n,
                                 a.c,
                                 a.s,
                                 dx.mutable_data_ptr(),
                                 worth_streaming(dx)};
  run_blocks(a, run.moments_backward_rows, run.moments_backward_pixels, args);
  return dx;
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("row_moments", TORCH_BOX(&ltdd::row_moments_cpu));
  m.impl("row_moments_backward", TORCH_BOX(&ltdd::row_moments_backward_cpu));
}
