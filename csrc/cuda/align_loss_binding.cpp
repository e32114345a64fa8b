// Registers align_loss for CUDA tensors.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "tensors.h"

namespace ltdd::cuda {
namespace {

constexpr const char* kOp = "align_loss";

using Tensors = std::vector<Tensor>;

std::tuple<Tensor, Tensors, Tensors> align_loss_cuda(
    const Tensors& means, const Tensors& m2s, std::vector<int64_t> sizes, const Tensor& labels,
    const Tensors& global_means, const Tensors& global_vars, const Tensors& class_means,
    const Tensors& class_vars, std::vector<double> weights, double class_weight) {
  const int64_t count = static_cast<int64_t>(means.size());
  if (count == 0) refuse(kOp, "at least one layer, got 0");
  const Tensor& x = means[0];
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t images = labels.numel();
  const bool by_class = class_weight != 0.0;
  check_vector(kOp, "labels", labels, images);
  check_count(kOp, "m2s", m2s.size(), count);
  check_count(kOp, "sizes", sizes.size(), count);
  check_count(kOp, "global_means", global_means.size(), count);
  check_count(kOp, "global_vars", global_vars.size(), count);
  check_count(kOp, "weights", weights.size(), count);
  if (by_class) check_count(kOp, "class_means", class_means.size(), count);
  if (by_class) check_count(kOp, "class_vars", class_vars.size(), count);
  const int64_t classes = by_class && class_means[0].dim() == 2 ? class_means[0].size(0) : 0;

  // Targets of one launch share a dtype: float32 only if all of them are.
  bool double_targets = false;
  for (const Tensors* list : {&global_means, &global_vars, &class_means, &class_vars})
    for (const Tensor& target : *list)
      double_targets = double_targets || target.scalar_type() == ScalarType::Double;
  const ScalarType target_dtype = double_targets ? ScalarType::Double : ScalarType::Float;
  const ScalarType row_dtype = acc_dtype(x);

  Tensors keep, grad_means, grad_m2s;
  const auto pointer = [&](const char* name, const Tensor& tensor, ScalarType dtype) {
    keep.push_back(dense(kOp, name, tensor, x, dtype));
    return keep.back().const_data_ptr();
  };
  std::vector<AlignLayer> layers(count);
  for (int64_t l = 0; l < count; ++l) {
    if (means[l].dim() != 2) refuse(kOp, "means of shape (N, C), got ", shape_of(means[l]));
    AlignLayer& layer = layers[l];
    layer.channels = means[l].size(1);
    check_matrix(kOp, "means", means[l], images, layer.channels);
    check_matrix(kOp, "m2s", m2s[l], images, layer.channels);
    check_vector(kOp, "global_means", global_means[l], layer.channels);
    check_vector(kOp, "global_vars", global_vars[l], layer.channels);
    layer.mean = pointer("means", means[l], row_dtype);
    layer.m2 = pointer("m2s", m2s[l], row_dtype);
    layer.global_mean = pointer("global_means", global_means[l], target_dtype);
    layer.global_var = pointer("global_vars", global_vars[l], target_dtype);
    if (by_class) {
      check_matrix(kOp, "class_means", class_means[l], classes, layer.channels);
      check_matrix(kOp, "class_vars", class_vars[l], classes, layer.channels);
      layer.class_mean = pointer("class_means", class_means[l], target_dtype);
      layer.class_var = pointer("class_vars", class_vars[l], target_dtype);
    }
    grad_means.push_back(new_empty(x, {images, layer.channels}, row_dtype));
    grad_m2s.push_back(new_empty(x, {images, layer.channels}, row_dtype));
    layer.grad_mean = grad_means.back().mutable_data_ptr();
    layer.grad_m2 = grad_m2s.back().mutable_data_ptr();
    layer.size = static_cast<double>(sizes[l]);
    layer.weight = weights[l];
    layer.double_targets = double_targets;
  }
  const Tensor loss = new_empty(x, {}, row_dtype);
  const Tensor label = dense(kOp, "labels", labels, x, ScalarType::Long);
  const int number = static_cast<int>(count);
  const Scratch scratch(
      x, align_loss_scratch_bytes(layers.data(), number, images, classes, class_weight));
  align_loss(layers.data(), number, type_of(kOp, keep.front()),
             static_cast<const int64_t*>(label.const_data_ptr()), images, classes, class_weight,
             loss.mutable_data_ptr(), scratch.data(), current_stream(x));
  return {loss, grad_means, grad_m2s};
}

}  // namespace
}  // namespace ltdd::cuda

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CUDA, m) {
  m.impl("align_loss", TORCH_BOX(&ltdd::cuda::align_loss_cuda));
}
