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

constexpr int64_t kMaxPool = 3;

// The same for a max pool, whose kernels take vectors of NHWC alone.
Arguments as_max_arguments(const char* op, const Tensor& x, const Tensor& k, const Tensor& h,
                           const std::optional<Tensor>& residual, int64_t act) {
  Arguments all = as_arguments(op, x, k, h, residual, act, 1);
  if (residual || !all.fused.relu || x.dim() != 4 || !takes_max_pool(all.a.shape))
    refuse(op, "channels_last x of 4 n channels, a ReLU and no residual with a max pool, got ",
           shape_of(x));
  all.a.tensor = all.a.aligned(all.a.tensor);
  return all;
}

int64_t half_up(int length) { return (length + 1) / 2; }

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_max_moments_cuda(const Arguments& all, bool keep) {
  const Activation& shape = all.a.shape;
  const Tensor& x = all.a.tensor;
  Tensor y = all.a.empty_in_layout(half_up(shape.height), half_up(shape.width));
  Tensor mean = all.a.rows(), m2 = all.a.rows();
  Tensor position = new_empty(x, {keep ? y.numel() : 0}, ScalarType::Byte);
  const Scratch scratch(x, bn_max_moments_scratch_bytes(shape));
  bn_max_moments(shape, all.fused, all.a.data(), y.mutable_data_ptr(), row_data(mean), row_data(m2),
                 keep ? static_cast<uint8_t*>(position.mutable_data_ptr()) : nullptr,
                 scratch.data(), current_stream(x));
  return {y, mean, m2, position};
}

std::tuple<Tensor, Tensor> bn_max_moments_backward_cuda(const char* op, const Arguments& all,
                                                        const Tensor& grad_y,
                                                        const Tensor& grad_mean,
                                                        const Tensor& grad_m2, const Tensor& mean,
                                                        const std::optional<Tensor>& position) {
  const Activation& shape = all.a.shape;
  const Tensor& x = all.a.tensor;
  const int64_t height = half_up(shape.height), width = half_up(shape.width);
  const int64_t outputs = shape.rows() * height * width;
  if (grad_y.dim() != 4 || grad_y.size(0) != shape.images || grad_y.size(1) != shape.channels ||
      grad_y.size(2) != height || grad_y.size(3) != width)
    refuse(op, "grad_y of half the plane of x, rounded up, got ", shape_of(grad_y));
  if (!position || position->scalar_type() != ScalarType::Byte || !position->is_contiguous() ||
      position->numel() != outputs)
    refuse(op, "passed of ", outputs, " bytes with a max pool");
  check_same_device(op, "passed", *position, x);
  const Tensor grads = all.a.aligned(all.a.in_layout(op, "grad_y", grad_y));
  const Tensor grad_means = dense(op, "grad_mean", grad_mean, x, ScalarType::Double);
  const Tensor grad_m2s = dense(op, "grad_m2", grad_m2, x, ScalarType::Double);
  const Tensor means = dense(op, "mean", mean, x, ScalarType::Double);
  const Tensor dx = all.a.like(), dresidual = new_empty(x, {0}, x.scalar_type());
  bn_max_moments_backward(shape, all.fused, static_cast<const uint8_t*>(position->const_data_ptr()),
                          grads.const_data_ptr(), const_row_data(grad_means),
                          const_row_data(grad_m2s), all.a.data(), const_row_data(means),
                          dx.mutable_data_ptr(), current_stream(x));
  return {dx, dresidual};
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
  const char* op = "bn_act_moments";
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  if (pool == kMaxPool)
    return bn_max_moments_cuda(as_max_arguments(op, x, k, h, residual, act), keep_passed);
  Arguments all = as_arguments(op, x, k, h, residual, act, pool);
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
  check_activation(op, x);
  check_matrix(op, "grad_mean", grad_mean, x.size(0), x.size(1));
  check_matrix(op, "grad_m2", grad_m2, x.size(0), x.size(1));
  check_matrix(op, "mean", mean, x.size(0), x.size(1));
  if (pool == kMaxPool) {
    if (grad_shortcut) refuse(op, "no grad_shortcut with pool, got one");
    return bn_max_moments_backward_cuda(op, as_max_arguments(op, x, k, h, residual, act), grad_y,
                                        grad_mean, grad_m2, mean, passed);
  }
  Arguments all = as_arguments(op, x, k, h, residual, act, pool);
  const Activation& shape = all.a.shape;
  if (passed) check_passed(op, all, *passed);
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
