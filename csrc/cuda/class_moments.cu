// class_moments_*: running statistics of every class from the row moments of a batch.
//
// Update: block (image i, 128 channels) works only if image i is the first of its class in the
// batch; it then walks the images of that class in batch order and adds them one by one, as the CPU
// does (add_image in common/moments.h), so the split into batches changes nothing. A thread owns a
// channel: the state is read and written once, rows are read once, no atomics. The counts follow in
// a second launch, because every channel block of the first one starts from the old count.
// Merge and finish go over the state once.

#include <limits>

#include "../common/moments.h"
#include "label_groups.h"
#include "ops.h"

namespace ltdd::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAhead = 4;  // images whose rows are loaded before the first of them is added

template <typename row_t>
__global__ void __launch_bounds__(kThreads)
    update_kernel(ClassState state, const row_t* __restrict__ mean,  // (N, C)
                  const row_t* __restrict__ m2,                      // (N, C)
                  double inverse_size, const int64_t* __restrict__ labels, int64_t images) {
  const int64_t label = labels[blockIdx.x];
  if (label < 0 || label >= state.classes) return;
  if (first_member(labels, blockIdx.x + 1, label) != blockIdx.x) return;
  const int64_t channel = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  const bool active = channel < state.channels;
  const int64_t at = label * state.channels + (active ? channel : 0);
  ClassChannelState one{state.mu[at], state.within[at], state.between[at]};
  int64_t count = state.count[label];

  row_t means[kAhead], m2s[kAhead];
  int waiting = 0;
  const auto add_waiting = [&] {
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (j < waiting)
        add_image(one, 1.0 / static_cast<double>(++count), static_cast<double>(means[j]),
                  static_cast<double>(m2s[j]) * inverse_size);
    waiting = 0;
  };
  for_members(labels, images, label, [&](int64_t image) {
    const int64_t row = image * state.channels + (active ? channel : 0);
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (j == waiting) {
        means[j] = mean[row];
        m2s[j] = m2[row];
      }
    if (++waiting == kAhead) add_waiting();
  });
  add_waiting();
  if (!active) return;
  state.mu[at] = one.mu;
  state.within[at] = one.within;
  state.between[at] = one.between;
}

// One warp per image; the warp of the first image of a class counts them all.
__global__ void __launch_bounds__(kThreads)
    count_kernel(int64_t* __restrict__ count, int64_t classes, const int64_t* __restrict__ labels,
                 int64_t images) {
  const int64_t image = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (image >= images) return;
  const int64_t label = labels[image];
  if (label < 0 || label >= classes) return;
  if (first_member(labels, image + 1, label) != image) return;
  const int64_t found = count_members(labels, images, label);
  if (lane_id() == 0) count[label] += found;
}

// One block per class: all threads read the count before one of them changes it.
__global__ void __launch_bounds__(kThreads) merge_kernel(ClassState state, ClassState other) {
  const int64_t k = blockIdx.x;
  const double here = static_cast<double>(state.count[k]);
  const double there = static_cast<double>(other.count[k]);
  for (int64_t c = threadIdx.x; c < state.channels; c += kThreads) {
    const int64_t at = k * state.channels + c;
    ClassChannelState one{state.mu[at], state.within[at], state.between[at]};
    merge_state(one, here, {other.mu[at], other.within[at], other.between[at]}, there);
    state.mu[at] = one.mu;
    state.within[at] = one.within;
    state.between[at] = one.between;
  }
  __syncthreads();
  if (threadIdx.x == 0) state.count[k] += other.count[k];
}

__global__ void __launch_bounds__(kThreads)
    finish_kernel(ClassState state, double none, double* __restrict__ mean,
                  double* __restrict__ within, double* __restrict__ between,
                  double* __restrict__ total) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= state.classes * state.channels) return;
  const int64_t images = state.count[at / state.channels];
  const double count = static_cast<double>(images);
  const bool seen = images > 0;  // a class never seen has no statistics
  const double inside = seen ? state.within[at] / count : none;
  const double across = seen ? state.between[at] / count : none;
  mean[at] = seen ? state.mu[at] : none;
  within[at] = inside;
  between[at] = across;
  total[at] = inside + across;
}

}  // namespace

void class_moments_update(const ClassState& state, Type row_type, const void* mean, const void* m2,
                          int64_t spatial_size, const int64_t* labels, int64_t images,
                          Stream stream) {
  if (images == 0 || state.classes == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const double inverse_size = 1.0 / static_cast<double>(spatial_size);
  const dim3 blocks(static_cast<unsigned>(images),
                    static_cast<unsigned>(ceil_div<int64_t>(state.channels, kThreads)));
  if (state.channels > 0) {
    if (row_type == Type::kFloat64)
      launch(&update_kernel<double>, blocks, dim3(kThreads), 0, on, state,
             static_cast<const double*>(mean), static_cast<const double*>(m2), inverse_size, labels,
             images);
    else
      launch(&update_kernel<float>, blocks, dim3(kThreads), 0, on, state,
             static_cast<const float*>(mean), static_cast<const float*>(m2), inverse_size, labels,
             images);
  }
  launch(&count_kernel, dim3(static_cast<unsigned>(ceil_div<int64_t>(images, kThreads / kWarp))),
         dim3(kThreads), 0, on, state.count, state.classes, labels, images);
  check_launch("class_moments_update_");
}

void class_moments_merge(const ClassState& state, const ClassState& other, Stream stream) {
  if (state.classes == 0) return;
  launch(&merge_kernel, dim3(static_cast<unsigned>(state.classes)), dim3(kThreads), 0,
         static_cast<cudaStream_t>(stream), state, other);
  check_launch("class_moments_merge_");
}

void class_moments_finish(const ClassState& state, double* mean, double* within, double* between,
                          double* total, Stream stream) {
  const int64_t entries = state.classes * state.channels;
  if (entries == 0) return;
  launch(&finish_kernel, dim3(static_cast<unsigned>(ceil_div<int64_t>(entries, kThreads))),
         dim3(kThreads), 0, static_cast<cudaStream_t>(stream), state,
         std::numeric_limits<double>::quiet_NaN(), mean, within, between, total);
  check_launch("class_moments_finish");
}

}  // namespace ltdd::cuda
