// Registers row_moments and row_moments_backward for CUDA tensors.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "tensors.h"

namespace ltdd::cuda {

std::tuple<Tensor, Tensor> row_moments_cuda(const Tensor& x) {  // x (N, C, H, W) or (N, C, S)
  const char* op = "row_moments";
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ActivationTensor a = as_activation(op, x);
  Tensor mean = a.rows(), m2 = a.rows();  // (N, C)
  if (a.shape.size() == 0) {
    torch::stable::fill_(mean, std::numeric_limits<double>::quiet_NaN());
    torch::stable::fill_(m2, 0.0);
    return {mean, m2};
  }
  const Scratch scratch(x, row_moments_scratch_bytes(a.shape));
  row_moments(a.shape, a.data(), row_data(mean), row_data(m2), scratch.data(), current_stream(x));
  return {mean, m2};
}

namespace {

Tensor row_moments_backward_cuda(const Tensor& grad_mean, const Tensor& grad_m2, const Tensor& x,
                                 const Tensor& mean) {
  const char* op = "row_moments_backward";
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ActivationTensor a = as_activation(op, x);
  check_matrix(op, "grad_mean", grad_mean, a.shape.images, a.shape.channels);
  check_matrix(op, "grad_m2", grad_m2, a.shape.images, a.shape.channels);
  check_matrix(op, "mean", mean, a.shape.images, a.shape.channels);
  const Tensor grad_means = dense(op, "grad_mean", grad_mean, x, ScalarType::Double);
  const Tensor grad_m2s = dense(op, "grad_m2", grad_m2, x, ScalarType::Double);
  const Tensor means = dense(op, "mean", mean, x, ScalarType::Double);
  const Tensor dx = a.like();
  row_moments_backward(a.shape, const_row_data(grad_means), const_row_data(grad_m2s), a.data(),
                       const_row_data(means), dx.mutable_data_ptr(), current_stream(x));
  return dx;
}

}  // namespace
}  // namespace ltdd::cuda

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CUDA, m) {
  m.impl("row_moments", TORCH_BOX(&ltdd::cuda::row_moments_cuda));
  m.impl("row_moments_backward", TORCH_BOX(&ltdd::cuda::row_moments_backward_cuda));
}
