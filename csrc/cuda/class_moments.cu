// class_moments: statistics of every class from the row moments of a batch, and the running ones of
// class_moments_*.
//
// Batch: block (class, 128 channels) starts from nothing, walks the images of its class in batch
// order and writes the finished statistics: one launch, and the bits of update and finish.
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
constexpr int kAhead = 16;  // images whose rows are loaded before the first of them is added

// The row moments of a batch, (N, C).
template <typename row_t>
struct BatchRows {
  const row_t *mean, *m2;
  double inverse_size;
  const int64_t* labels;
  int64_t images;
};

// Adds the images of one class in the order of the batch; called by whole warps, one channel a
// lane.
template <typename row_t>
__device__ __forceinline__ void add_images(ClassChannelState& one, int64_t& count,
                                           const BatchRows<row_t>& rows, int64_t label,
                                           int64_t channels, int64_t channel) {
  row_t means[kAhead], m2s[kAhead];
  int waiting = 0;
  const auto add_waiting = [&] {
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (j < waiting)
        add_image(one, 1.0 / static_cast<double>(++count), static_cast<double>(means[j]),
                  static_cast<double>(m2s[j]) * rows.inverse_size);
    waiting = 0;
  };
  for_members(rows.labels, rows.images, label, [&](int64_t image) {
    const int64_t row = image * channels + channel;
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (j == waiting) {
        means[j] = rows.mean[row];
        m2s[j] = rows.m2[row];
      }
    if (++waiting == kAhead) add_waiting();
  });
  add_waiting();
}

// Where the statistics of the classes go, (K, C) each.
struct Finished {
  double *mean, *within, *between, *total;

  // A class never seen has no statistics.
  __device__ void write(int64_t at, const ClassChannelState& one, int64_t images,
                        double none) const {
    const double count = static_cast<double>(images);
    const bool seen = images > 0;
    const double inside = seen ? one.within / count : none;
    const double across = seen ? one.between / count : none;
    mean[at] = seen ? one.mu : none;
    within[at] = inside;
    between[at] = across;
    total[at] = inside + across;
  }
};

__global__ void __launch_bounds__(kThreads)
    batch_kernel(BatchRows<double> rows, int64_t classes, int64_t channels, double none,
                 Finished finished) {
  const int64_t label = blockIdx.x;
  const int64_t channel = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  const bool active = channel < channels;
  ClassChannelState one{0, 0, 0};
  int64_t count = 0;
  add_images(one, count, rows, label, channels, active ? channel : 0);
  // Nobody can be told of a label out of range while a graph runs; no number is right then.
  if (any_stray_label(rows.labels, rows.images, classes)) count = 0;
  if (active) finished.write(label * channels + channel, one, count, none);
}

template <typename row_t>
__global__ void __launch_bounds__(kThreads) update_kernel(ClassState state, BatchRows<row_t> rows) {
  const int64_t label = rows.labels[blockIdx.x];
  if (label < 0 || label >= state.classes) return;
  if (first_member(rows.labels, blockIdx.x + 1, label) != blockIdx.x) return;
  const int64_t channel = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  const bool active = channel < state.channels;
  const int64_t at = label * state.channels + (active ? channel : 0);
  ClassChannelState one{state.mu[at], state.within[at], state.between[at]};
  int64_t count = state.count[label];
  add_images(one, count, rows, label, state.channels, active ? channel : 0);
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
    finish_kernel(ClassState state, double none, Finished finished) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= state.classes * state.channels) return;
  finished.write(at, {state.mu[at], state.within[at], state.between[at]},
                 state.count[at / state.channels], none);
}

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

unsigned channel_blocks(int64_t channels) {
  return static_cast<unsigned>(ceil_div<int64_t>(channels, kThreads));
}

}  // namespace

void class_moments_batch(const double* mean, const double* m2, int64_t spatial_size,
                         const int64_t* labels, int64_t images, int64_t classes, int64_t channels,
                         double* to_mean, double* within, double* between, double* total,
                         Stream stream) {
  if (classes == 0 || channels == 0) return;
  const BatchRows<double> rows{mean, m2, 1.0 / static_cast<double>(spatial_size), labels, images};
  launch(&batch_kernel, dim3(static_cast<unsigned>(classes), channel_blocks(channels)),
         dim3(kThreads), 0, static_cast<cudaStream_t>(stream), rows, classes, channels, kNone,
         Finished{to_mean, within, between, total});
  check_launch("class_moments");
}

void class_moments_update(const ClassState& state, Type row_type, const void* mean, const void* m2,
                          int64_t spatial_size, const int64_t* labels, int64_t images,
                          Stream stream) {
  if (images == 0 || state.classes == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const auto update = [&]<typename row_t>() {
    const BatchRows<row_t> rows{static_cast<const row_t*>(mean), static_cast<const row_t*>(m2),
                                1.0 / static_cast<double>(spatial_size), labels, images};
    launch(&update_kernel<row_t>,
           dim3(static_cast<unsigned>(images), channel_blocks(state.channels)), dim3(kThreads), 0,
           on, state, rows);
  };
  if (state.channels > 0 && row_type == Type::kFloat64) update.template operator()<double>();
  if (state.channels > 0 && row_type == Type::kFloat32) update.template operator()<float>();
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
         dim3(kThreads), 0, static_cast<cudaStream_t>(stream), state, kNone,
         Finished{mean, within, between, total});
  check_launch("class_moments_finish");
}

}  // namespace ltdd::cuda
