// Registers norm_act and norm_act_backward for CUDA tensors.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "tensors.h"

namespace ltdd::cuda {
namespace {

// The arguments that forward and backward share, dense and in the layout of x.
struct Arguments {
  ActivationTensor a;
  Tensor weight, bias;
  NormAct norm;
};

Arguments as_arguments(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       bool per_image, double eps, int64_t act, int64_t pool) {
  Arguments all{as_activation(op, x), weight, bias, {}};
  check_vector(op, "weight", weight, all.a.shape.channels);
  check_vector(op, "bias", bias, all.a.shape.channels);
  const Switches with = check_switches(op, x, act, pool);
  all.weight = dense(op, "weight", weight, x, acc_dtype(x));
  all.bias = dense(op, "bias", bias, x, acc_dtype(x));
  all.norm = {
      all.weight.const_data_ptr(), all.bias.const_data_ptr(), eps, per_image, with.relu, with.pool};
  return all;
}

std::tuple<Tensor, Tensor, Tensor> norm_act_cuda(const Tensor& x, const Tensor& weight,
                                                 const Tensor& bias, bool per_image, double eps,
                                                 int64_t act, int64_t pool) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Arguments all = as_arguments("norm_act", x, weight, bias, per_image, eps, act, pool);
  const Activation& shape = all.a.shape;
  Tensor y = all.a.output(all.norm.pool), mean = all.a.rows(), m2 = all.a.rows();
  if (shape.size() == 0) {
    torch::stable::fill_(mean, std::numeric_limits<double>::quiet_NaN());
    torch::stable::fill_(m2, 0.0);
    return {y, mean, m2};
  }
  const Scratch scratch(x, norm_act_scratch_bytes(shape, all.norm));
  norm_act(shape, all.norm, all.a.data(), y.mutable_data_ptr(), row_data(mean), row_data(m2),
           scratch.data(), current_stream(x));
  return {y, mean, m2};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_backward_cuda(const Tensor& grad_y, const Tensor& x,
                                                          const Tensor& weight, const Tensor& bias,
                                                          const Tensor& mean, const Tensor& m2,
                                                          bool per_image, double eps, int64_t act,
                                                          int64_t pool) {
  const char* op = "norm_act_backward";
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Arguments all = as_arguments(op, x, weight, bias, per_image, eps, act, pool);
  const Activation& shape = all.a.shape;
  check_matrix(op, "mean", mean, shape.images, shape.channels);
  check_matrix(op, "m2", m2, shape.images, shape.channels);
  const Tensor grads = all.a.output_grad(op, grad_y, all.norm.pool);
  const Tensor means = dense(op, "mean", mean, x, ScalarType::Double);
  const Tensor m2s = dense(op, "m2", m2, x, ScalarType::Double);
  const Tensor dx = all.a.like();
  Tensor grad_weight = new_empty(x, {shape.channels}, acc_dtype(x));
  Tensor grad_bias = new_empty(x, {shape.channels}, acc_dtype(x));
  if (shape.rows() == 0 || shape.size() == 0) {
    torch::stable::fill_(grad_weight, 0.0);
    torch::stable::fill_(grad_bias, 0.0);
    return {dx, grad_weight, grad_bias};
  }
  const Scratch scratch(x, norm_act_backward_scratch_bytes(shape, all.norm));
  norm_act_backward(shape, all.norm, grads.const_data_ptr(), all.a.data(), const_row_data(means),
                    const_row_data(m2s), dx.mutable_data_ptr(), grad_weight.mutable_data_ptr(),
                    grad_bias.mutable_data_ptr(), scratch.data(), current_stream(x));
  return {dx, grad_weight, grad_bias};
}

}  // namespace
}  // namespace ltdd::cuda

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CUDA, m) {
  m.impl("norm_act", TORCH_BOX(&ltdd::cuda::norm_act_cuda));
  m.impl("norm_act_backward", TORCH_BOX(&ltdd::cuda::norm_act_backward_cuda));
}
