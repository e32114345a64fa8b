// Registers bn_act_moments and bn_act_moments_backward for CUDA tensors.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "tensors.h"

namespace ltdd::cuda {
namespace {

// The arguments that forward and backward share, dense and in the layout of x.
struct Arguments {
  ActivationTensor a;
  Tensor k, h;
  std::optional<Tensor> residual;
  BnAct fused;
};

Arguments as_arguments(const char* op, const Tensor& x, const Tensor& k, const Tensor& h,
                       const std::optional<Tensor>& residual, int64_t act, int64_t pool) {
  Arguments all{as_activation(op, x), k, h, residual, {}};
  const Activation& shape = all.a.shape;
  check_vector(op, "k", k, shape.channels);
  check_vector(op, "h", h, shape.channels);
  const Switches with = check_switches(op, x, act, pool);
  all.k = dense(op, "k", k, x, acc_dtype(x));
  all.h = dense(op, "h", h, x, acc_dtype(x));
  if (residual) {
    if (!same_shape(*residual, x))
      refuse(op, "residual of shape ", shape_of(x), ", got ", shape_of(*residual));
    all.residual = all.a.in_layout(op, "residual", *residual);
  }
  all.fused = {all.k.const_data_ptr(), all.h.const_data_ptr(),
               all.residual ? all.residual->const_data_ptr() : nullptr, with.relu, with.pool};
  return all;
}

// Which elements passed the ReLU behind a residual; empty where that is not wanted, or not kept.
Tensor empty_passed(const Arguments& all, bool wanted) {
  const bool kept = wanted && all.residual && all.fused.relu && !all.fused.pool;
  const size_t bytes = kept ? bn_act_passed_bytes(all.a.shape) : 0;
  return new_empty(all.a.tensor, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_act_moments_cuda(
    const Tensor& x, const Tensor& k, const Tensor& h, const std::optional<Tensor>& residual,
    int64_t act, int64_t pool, bool keep_passed) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Arguments all = as_arguments("bn_act_moments", x, k, h, residual, act, pool);
  const Activation& shape = all.a.shape;
  Tensor y = all.a.output(all.fused.pool), mean = all.a.rows(), m2 = all.a.rows();
  Tensor passed = empty_passed(all, keep_passed);
  if (shape.size() == 0) {
    torch::stable::fill_(mean, std::numeric_limits<double>::quiet_NaN());
    torch::stable::fill_(m2, 0.0);
    return {y, mean, m2, passed};
  }
  const bool keeps = passed.numel() > 0;
  if (keeps) {
    all.a.tensor = all.a.aligned(all.a.tensor);
    all.residual = all.a.aligned(*all.residual);
    all.fused.residual = all.residual->const_data_ptr();
  }
  const Scratch scratch(
      x, bn_act_moments_scratch_bytes(shape, all.residual.has_value(), all.fused.pool));
  bn_act_moments(shape, all.fused, all.a.data(), y.mutable_data_ptr(), row_data(mean), row_data(m2),
                 keeps ? static_cast<uint8_t*>(passed.mutable_data_ptr()) : nullptr, scratch.data(),
                 current_stream(x));
  return {y, mean, m2, passed};
}

// They stand for the residual, and must be those of this activation.
void check_passed(const char* op, const Arguments& all, const Tensor& passed) {
  if (all.residual) refuse(op, "passed or residual, got both");
  if (!all.fused.relu || all.fused.pool) refuse(op, "passed with a ReLU and without pool");
  check_same_device(op, "passed", passed, all.a.tensor);
  const int64_t bytes = static_cast<int64_t>(bn_act_passed_bytes(all.a.shape));
  if (passed.scalar_type() != ScalarType::Byte || !passed.is_contiguous() || bytes == 0 ||
      passed.numel() != bytes)
    refuse(op, "passed of ", bytes, " bytes, got ", shape_of(passed));
}

std::tuple<Tensor, Tensor> bn_act_moments_backward_cuda(
    const Tensor& grad_y, const Tensor& grad_mean, const Tensor& grad_m2, const Tensor& x,
    const Tensor& k, const Tensor& h, const std::optional<Tensor>& residual, const Tensor& mean,
    int64_t act, int64_t pool, const std::optional<Tensor>& grad_shortcut,
    const std::optional<Tensor>& passed) {
  const char* op = "bn_act_moments_backward";
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Arguments all = as_arguments(op, x, k, h, residual, act, pool);
  const Activation& shape = all.a.shape;
  if (passed) check_passed(op, all, *passed);
  check_matrix(op, "grad_mean", grad_mean, shape.images, shape.channels);
  check_matrix(op, "grad_m2", grad_m2, shape.images, shape.channels);
  check_matrix(op, "mean", mean, shape.images, shape.channels);
  Tensor grads = all.a.output_grad(op, grad_y, all.fused.pool);
  if (grad_shortcut && all.fused.pool) refuse(op, "no grad_shortcut with pool, got one");
  std::optional<Tensor> shortcut;
  if (grad_shortcut) shortcut = all.a.output_grad(op, *grad_shortcut, false);
  const Tensor grad_means = dense(op, "grad_mean", grad_mean, x, ScalarType::Double);
  const Tensor grad_m2s = dense(op, "grad_m2", grad_m2, x, ScalarType::Double);
  const Tensor means = dense(op, "mean", mean, x, ScalarType::Double);
  if (passed) {
    all.a.tensor = all.a.aligned(all.a.tensor);
    grads = all.a.aligned(grads);
    if (shortcut) shortcut = all.a.aligned(*shortcut);
  }
  const bool added = residual || passed;
  const Tensor dx = all.a.like();
  const Tensor dresidual = added ? all.a.like() : new_empty(x, {0}, x.scalar_type());
  bn_act_moments_backward(
      shape, all.fused, passed ? static_cast<const uint8_t*>(passed->const_data_ptr()) : nullptr,
      grads.const_data_ptr(), shortcut ? shortcut->const_data_ptr() : nullptr,
      const_row_data(grad_means), const_row_data(grad_m2s), all.a.data(), const_row_data(means),
      dx.mutable_data_ptr(), added ? dresidual.mutable_data_ptr() : nullptr, current_stream(x));
  return {dx, dresidual};
}

}  // namespace
}  // namespace ltdd::cuda

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CUDA, m) {
  m.impl("bn_act_moments", TORCH_BOX(&ltdd::cuda::bn_act_moments_cuda));
  m.impl("bn_act_moments_backward", TORCH_BOX(&ltdd::cuda::bn_act_moments_backward_cuda));
}
