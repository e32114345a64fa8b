// class_moments_*: running statistics of every class from the row moments of a batch.
// class_moments: those of one batch, in a state that becomes the result.
//
// The state of a class grows image by image, in the order of the batch (add_image in
// common/moments.h): the update is Chan's merge with one image, whose momentum 1/(n+1) compounds to
// the dynamic momentum B/(n+B) of a batch, and the split into batches changes no bit.
// State is int64 and float64. Traffic: the rows once, the touched classes once.
// A task owns a range of channels and walks the images class by class, those of a class in order:
// no atomics, any number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "../common/moments.h"
#include "kernels.h"
#include "tensors.h"

namespace ltdd {
namespace {

constexpr int64_t kBlock = 64;  // channels of one task: eight cache lines of each state row

struct ClassState {
  int64_t* count;   // [K]
  double* mu;       // [K, C]
  double* within;   // [K, C]
  double* between;  // [K, C]
  int64_t num_classes, channels;
};

ClassState as_state(const char* op, const Tensor& count, const Tensor& mu, const Tensor& within,
                    const Tensor& between) {
  if (mu.dim() != 2) refuse(op, "mu of shape (K, C), got ", shape_of(mu));
  const int64_t num_classes = mu.size(0), channels = mu.size(1);
  check_vector(op, "count", count, num_classes);
  check_matrix(op, "within", within, num_classes, channels);
  check_matrix(op, "between", between, num_classes, channels);
  const Tensor* parts[] = {&mu, &within, &between};
  for (const Tensor* part : parts)
    if (part->scalar_type() != ScalarType::Double || !part->is_contiguous())
      refuse(op, "a contiguous float64 state, got another");
  if (count.scalar_type() != ScalarType::Long || !count.is_contiguous())
    refuse(op, "a contiguous int64 count, got another");
  return {static_cast<int64_t*>(count.mutable_data_ptr()),
          static_cast<double*>(mu.mutable_data_ptr()),
          static_cast<double*>(within.mutable_data_ptr()),
          static_cast<double*>(between.mutable_data_ptr()),
          num_classes,
          channels};
}

// Adds the images of a batch to the state; with a total, the state is written, and is the result.
void add_batch(const char* op, const ClassState& state, const Tensor& mean, const Tensor& m2,
               int64_t spatial_size, const Tensor& labels, double* total) {
  const int64_t n = labels.numel();
  check_vector(op, "labels", labels, n);
  check_matrix(op, "mean", mean, n, state.channels);
  check_matrix(op, "m2", m2, n, state.channels);
  const Tensor dense_labels = contiguous_as(labels, ScalarType::Long);
  const auto* label = static_cast<const int64_t*>(dense_labels.const_data_ptr());
  check_labels(op, label, n, state.num_classes);

  std::vector<double> inverse_count(n);
  std::vector<int64_t> first(state.num_classes + 2), image(n);
  for (int64_t i = 0; i < n; ++i) {
    inverse_count[i] = 1.0 / static_cast<double>(++state.count[label[i]]);
    ++first[label[i] + 2];
  }
  std::partial_sum(first.begin(), first.end(), first.begin());
  for (int64_t i = 0; i < n; ++i) image[first[label[i] + 1]++] = i;

  const Tensor means = contiguous_as(mean, ScalarType::Double);
  const Tensor m2s = contiguous_as(m2, ScalarType::Double);
  const AddImagesArgs args{const_row_data(means),
                           const_row_data(m2s),
                           image.data(),
                           first.data(),
                           inverse_count.data(),
                           state.channels,
                           1.0 / static_cast<double>(spatial_size),
                           state.mu,
                           state.within,
                           state.between,
                           total};
  const Kernels& run = kernels(Storage::kDouble);
  const int64_t blocks = (state.channels + kBlock - 1) / kBlock;
  for_each_task(blocks, n * kBlock, [&](int64_t block) {
    const int64_t begin = block * kBlock, end = std::min(begin + kBlock, state.channels);
    for (int64_t k = 0; k < state.num_classes; ++k)
      if (total != nullptr || first[k] < first[k + 1]) run.add_images(args, k, begin, end);
  });
}

void class_moments_update_cpu(const Tensor& count, const Tensor& mu, const Tensor& within,
                              const Tensor& between, const Tensor& mean, const Tensor& m2,
                              int64_t spatial_size, const Tensor& labels) {
  const char* op = "class_moments_update_";
  const ClassState state = as_state(op, count, mu, within, between);
  add_batch(op, state, mean, m2, spatial_size, labels, nullptr);
}

void class_moments_merge_cpu(const Tensor& count, const Tensor& mu, const Tensor& within,
                             const Tensor& between, const Tensor& other_count,
                             const Tensor& other_mu, const Tensor& other_within,
                             const Tensor& other_between) {
  const char* op = "class_moments_merge_";
  const ClassState state = as_state(op, count, mu, within, between);
  const ClassState other = as_state(op, other_count, other_mu, other_within, other_between);
  check_matrix(op, "other_mu", other_mu, state.num_classes, state.channels);
  for_each_task(state.num_classes, state.channels, [&](int64_t k) {
    const double here = static_cast<double>(state.count[k]);
    const double there = static_cast<double>(other.count[k]);
    for (int64_t i = k * state.channels; i < (k + 1) * state.channels; ++i) {
      ClassChannelState one{state.mu[i], state.within[i], state.between[i]};
      merge_state(one, here, {other.mu[i], other.within[i], other.between[i]}, there);
      state.mu[i] = one.mu;
      state.within[i] = one.within;
      state.between[i] = one.between;
    }
    state.count[k] += other.count[k];
  });
}

using Finished = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Tensor new_table(const Tensor& like, const ClassState& state) {
  const int64_t shape[] = {state.num_classes, state.channels};
  return new_empty(like, {shape, 2}, ScalarType::Double);
}

Finished class_moments_finish_cpu(const Tensor& count, const Tensor& mu, const Tensor& within,
                                  const Tensor& between) {
  const ClassState state = as_state("class_moments_finish", count, mu, within, between);
  Tensor out[4];
  double* to[4];
  for (int i = 0; i < 4; ++i) {
    out[i] = new_table(mu, state);
    to[i] = row_data(out[i]);
  }
  for_each_task(state.num_classes, state.channels, [&](int64_t k) {
    const double images = static_cast<double>(state.count[k]);
    const double none = std::numeric_limits<double>::quiet_NaN();
    for (int64_t i = k * state.channels; i < (k + 1) * state.channels; ++i) {
      to[0][i] = images > 0 ? state.mu[i] : none;  // a class never seen has no statistics
      to[1][i] = images > 0 ? state.within[i] / images : none;
      to[2][i] = images > 0 ? state.between[i] / images : none;
      to[3][i] = to[1][i] + to[2][i];
    }
  });
  return {out[0], out[1], out[2], out[3]};
}

Finished class_moments_cpu(const Tensor& x, const Tensor& labels, int64_t num_classes) {
  const char* op = "class_moments";
  check_activation(op, x);
  check_vector(op, "labels", labels, x.size(0));
  if (num_classes < 1) refuse(op, "num_classes >= 1, got ", num_classes);
  const auto [mean, m2] = row_moments_cpu(x);
  std::vector<int64_t> count(num_classes);
  ClassState state{count.data(), nullptr, nullptr, nullptr, num_classes, x.size(1)};
  const Tensor means = new_table(x, state), within = new_table(x, state);
  const Tensor between = new_table(x, state), total = new_table(x, state);
  state.mu = row_data(means);
  state.within = row_data(within);
  state.between = row_data(between);
  const int64_t spatial_size = x.size(2) * (x.dim() == 4 ? x.size(3) : 1);
  add_batch(op, state, mean, m2, spatial_size, labels, row_data(total));
  return {means, within, between, total};
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("class_moments", TORCH_BOX(&ltdd::class_moments_cpu));
  m.impl("class_moments_update_", TORCH_BOX(&ltdd::class_moments_update_cpu));
  m.impl("class_moments_merge_", TORCH_BOX(&ltdd::class_moments_merge_cpu));
  m.impl("class_moments_finish", TORCH_BOX(&ltdd::class_moments_finish_cpu));
}
