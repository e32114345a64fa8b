// Registers class_moments and class_moments_update_, _merge_ and _finish for CUDA tensors.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "tensors.h"

namespace ltdd::cuda {
namespace {

ClassState as_state(const char* op, const Tensor& x, const Tensor& count, const Tensor& mu,
                    const Tensor& within, const Tensor& between) {
  if (mu.dim() != 2) refuse(op, "mu of shape (K, C), got ", shape_of(mu));
  const int64_t classes = mu.size(0), channels = mu.size(1);
  check_vector(op, "count", count, classes);
  check_matrix(op, "within", within, classes, channels);
  check_matrix(op, "between", between, classes, channels);
  const Tensor* parts[] = {&mu, &within, &between};
  for (const Tensor* part : parts) {
    check_same_device(op, "state", *part, x);
    if (part->scalar_type() != ScalarType::Double || !part->is_contiguous())
      refuse(op, "a contiguous float64 state, got another");
  }
  check_same_device(op, "count", count, x);
  if (count.scalar_type() != ScalarType::Long || !count.is_contiguous())
    refuse(op, "a contiguous int64 count, got another");
  return {static_cast<int64_t*>(count.mutable_data_ptr()),
          static_cast<double*>(mu.mutable_data_ptr()),
          static_cast<double*>(within.mutable_data_ptr()),
          static_cast<double*>(between.mutable_data_ptr()),
          classes,
          channels};
}

void class_moments_update_cuda(const Tensor& count, const Tensor& mu, const Tensor& within,
                               const Tensor& between, const Tensor& mean, const Tensor& m2,
                               int64_t spatial_size, const Tensor& labels) {
  const char* op = "class_moments_update_";
  const torch::stable::accelerator::DeviceGuard guard(mu.get_device_index());
  const ClassState state = as_state(op, mu, count, mu, within, between);
  const int64_t images = labels.numel();
  check_vector(op, "labels", labels, images);
  check_matrix(op, "mean", mean, images, state.channels);
  check_matrix(op, "m2", m2, images, state.channels);
  const Tensor means = dense(op, "mean", mean, mu, acc_dtype(mean));
  const Tensor m2s = dense(op, "m2", m2, mu, acc_dtype(mean));
  const Tensor classes = dense(op, "labels", labels, mu, ScalarType::Long);
  class_moments_update(state, type_of(op, means), means.const_data_ptr(), m2s.const_data_ptr(),
                       spatial_size, static_cast<const int64_t*>(classes.const_data_ptr()), images,
                       current_stream(mu));
}

void class_moments_merge_cuda(const Tensor& count, const Tensor& mu, const Tensor& within,
                              const Tensor& between, const Tensor& other_count,
                              const Tensor& other_mu, const Tensor& other_within,
                              const Tensor& other_between) {
  const char* op = "class_moments_merge_";
  const torch::stable::accelerator::DeviceGuard guard(mu.get_device_index());
  const ClassState state = as_state(op, mu, count, mu, within, between);
  const ClassState other = as_state(op, mu, other_count, other_mu, other_within, other_between);
  check_matrix(op, "other_mu", other_mu, state.classes, state.channels);
  class_moments_merge(state, other, current_stream(mu));
}

// Mean, within, between and total, (K, C) each.
struct Finished {
  Tensor out[4];
  double* to[4];

  Finished(const Tensor& like, int64_t classes, int64_t channels) {
    for (int i = 0; i < 4; ++i) {
      out[i] = new_empty(like, {classes, channels}, ScalarType::Double);
      to[i] = row_data(out[i]);
    }
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor> tensors() const {
    return {out[0], out[1], out[2], out[3]};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> class_moments_finish_cuda(const Tensor& count,
                                                                     const Tensor& mu,
                                                                     const Tensor& within,
                                                                     const Tensor& between) {
  const torch::stable::accelerator::DeviceGuard guard(mu.get_device_index());
  const ClassState state = as_state("class_moments_finish", mu, count, mu, within, between);
  const Finished found(mu, state.classes, state.channels);
  class_moments_finish(state, found.to[0], found.to[1], found.to[2], found.to[3],
                       current_stream(mu));
  return found.tensors();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> class_moments_cuda(const Tensor& x, const Tensor& labels,
                                                              int64_t num_classes) {
  const char* op = "class_moments";
  check_activation(op, x);
  check_vector(op, "labels", labels, x.size(0));
  if (num_classes < 1) refuse(op, "num_classes >= 1, got ", num_classes);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor classes = dense(op, "labels", labels, x, ScalarType::Long);
  const auto [mean, m2] = row_moments_cuda(x);
  const Finished found(x, num_classes, x.size(1));
  class_moments_batch(
      const_row_data(mean), const_row_data(m2), x.size(2) * (x.dim() == 4 ? x.size(3) : 1),
      static_cast<const int64_t*>(classes.const_data_ptr()), x.size(0), num_classes, x.size(1),
      found.to[0], found.to[1], found.to[2], found.to[3], current_stream(x));
  return found.tensors();
}

}  // namespace
}  // namespace ltdd::cuda

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CUDA, m) {
  m.impl("class_moments", TORCH_BOX(&ltdd::cuda::class_moments_cuda));
  m.impl("class_moments_update_", TORCH_BOX(&ltdd::cuda::class_moments_update_cuda));
  m.impl("class_moments_merge_", TORCH_BOX(&ltdd::cuda::class_moments_merge_cuda));
  m.impl("class_moments_finish", TORCH_BOX(&ltdd::cuda::class_moments_finish_cuda));
}
