// bn_act_moments: y = pool(act(k x + h + residual)) and the row moments of x, in one pass.
//
// k = w rsqrt(running_var + eps), h = b - running_mean k: a frozen batch norm. act is none or ReLU,
// pool is none or the average of 2x2 blocks (odd edges dropped). Backward:
//
//   g = mask unpool(grad_y),   dresidual = g,   dx = k g + grad_mean / S + 2 grad_m2 (x - mean)
//
// Traffic: forward reads x (and residual) and writes y; backward reads grad_y, x (and residual) and
// writes dx (and dresidual). Where the ReLU passed is found again from x and residual: `passed`,
// which spares a GPU the residual, stays empty here. Two readers of y may have left a gradient
// each. Their sum is taken first here: added inside of the loop, the compiler contracts what
// follows in another way, and last digits change. The loops are in bn_act_kernels.h.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "fused.h"

namespace ltdd {
namespace {

constexpr int64_t kNothing = 0;  // the size of what nobody asked for, or nobody needs

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_act_moments_cpu(const Tensor& x, const Tensor& k,
                                                              const Tensor& h,
                                                              const std::optional<Tensor>& residual,
                                                              int64_t act, int64_t pool, bool) {
  const char* op = "bn_act_moments";
  const Activation a = as_activation(op, x);
  const Image image = check_fused(op, a, act, pool);
  check_vector(op, "k", k, a.c);
  check_vector(op, "h", h, a.c);
  const Kernels& run = kernels(storage_of(op, x));
  const ScalarType acc_type = acc_dtype(x.scalar_type());
  const Tensor scale = contiguous_as(k, acc_type), offset = contiguous_as(h, acc_type);
  std::optional<Tensor> added;
  if (residual) added = in_layout_of(op, "residual", a, image, *residual);
  const Tensor y = pool == 2 ? empty_images(a, image.height / 2, image.width / 2) : empty_like(a);
  const Tensor mean = empty_rows(a), m2 = empty_rows(a);
  const Tensor passed = new_empty(a.tensor, {&kNothing, 1}, ScalarType::Byte);
  if (a.tensor.numel() == 0) {
    fill_empty_rows(mean, m2);
    return {y, mean, m2, passed};
  }
  const BnActArgs args{a.tensor.const_data_ptr(),
                       added ? added->const_data_ptr() : nullptr,
                       scale.const_data_ptr(),
                       offset.const_data_ptr(),
                       a.n,
                       a.c,
                       image.height,
                       image.width,
                       act == 1,
                       pool == 2,
                       worth_streaming(y),
                       false,
                       y.mutable_data_ptr(),
                       row_data(mean),
                       row_data(m2)};
  run_blocks(a, run.bn_act_rows, run.bn_act_pixels, args);
  return {y, mean, m2, passed};
}

std::tuple<Tensor, Tensor> bn_act_moments_backward_cpu(
    const Tensor& grad_y, const Tensor& grad_mean, const Tensor& grad_m2, const Tensor& x,
    const Tensor& k, const Tensor& h, const std::optional<Tensor>& residual, const Tensor& mean,
    int64_t act, int64_t pool, const std::optional<Tensor>& grad_shortcut,
    const std::optional<Tensor>& passed) {
  const char* op = "bn_act_moments_backward";
  if (passed) refuse(op, "residual in place of passed on a CPU");
  const Activation a = as_activation(op, x);
  const Image image = check_fused(op, a, act, pool);
  check_vector(op, "k", k, a.c);
  check_vector(op, "h", h, a.c);
  check_matrix(op, "grad_mean", grad_mean, a.n, a.c);
  check_matrix(op, "grad_m2", grad_m2, a.n, a.c);
  check_matrix(op, "mean", mean, a.n, a.c);
  const Kernels& run = kernels(storage_of(op, x));
  const ScalarType acc_type = acc_dtype(x.scalar_type());
  const Tensor scale = contiguous_as(k, acc_type), offset = contiguous_as(h, acc_type);
  const Tensor means = contiguous_as(mean, ScalarType::Double);
  const Tensor grad_means = contiguous_as(grad_mean, ScalarType::Double);
  const Tensor grad_m2s = contiguous_as(grad_m2, ScalarType::Double);
  std::optional<Tensor> added;
  if (residual) added = in_layout_of(op, "residual", a, image, *residual);
  const Image out = pool == 2 ? Image{image.height / 2, image.width / 2} : image;
  if (grad_shortcut && pool == 2) refuse(op, "no grad_shortcut with pool, got one");
  Tensor grads = in_layout_of(op, "grad_y", a, out, grad_y);
  if (grad_shortcut) {
    const Tensor other = in_layout_of(op, "grad_shortcut", a, image, *grad_shortcut);
    grads = torch::stable::subtract(grads, other, -1);  // the sum, for which there is no name
  }
  const Tensor dx = empty_like(a);
  const Tensor dresidual =
      residual ? empty_like(a) : new_empty(a.tensor, {&kNothing, 1}, x.scalar_type());
  if (a.tensor.numel() == 0) return {dx, dresidual};
  const BnActBackwardArgs args{const_row_data(grad_means),
                               const_row_data(grad_m2s),
                               const_row_data(means),
                               grads.const_data_ptr(),
                               a.tensor.const_data_ptr(),
                               added ? added->const_data_ptr() : nullptr,
                               scale.const_data_ptr(),
                               offset.const_data_ptr(),
                               a.n,
                               a.c,
                               image.height,
                               image.width,
                               act == 1,
                               pool == 2,
                               worth_streaming(dx),
                               false,
                               dx.mutable_data_ptr(),
                               residual ? dresidual.mutable_data_ptr() : nullptr};
  run_blocks(a, run.bn_act_backward_rows, run.bn_act_backward_pixels, args);
  return {dx, dresidual};
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("bn_act_moments", TORCH_BOX(&ltdd::bn_act_moments_cpu));
  m.impl("bn_act_moments_backward", TORCH_BOX(&ltdd::bn_act_moments_backward_cpu));
}
