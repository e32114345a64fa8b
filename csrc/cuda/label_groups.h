#pragma once

// Samples of one class, found by warp ballots: no sort, no list in memory, always in batch order.
//
// Every warp scans the labels for itself, 32 at a time, so the warps of a block agree without a
// barrier. For that all 32 lanes of a warp must call these functions together.

#include "platform.h"

namespace ltdd::cuda {

inline __device__ int lane_id() {
  return static_cast<int>(threadIdx.x + threadIdx.y * blockDim.x) % kWarp;
}

// Which of labels [base, base + 32) equal `label`, as a bit mask.
inline __device__ unsigned members(const int64_t* labels, int64_t base, int64_t end,
                                   int64_t label) {
  const int64_t i = base + lane_id();
  return __ballot_sync(kFullWarp, i < end && labels[i] == label);
}

// The first sample with this label among [0, end), or end if there is none.
inline __device__ int64_t first_member(const int64_t* labels, int64_t end, int64_t label) {
  for (int64_t base = 0; base < end; base += kWarp) {
    const unsigned found = members(labels, base, end, label);
    if (found != 0) return base + __ffs(static_cast<int>(found)) - 1;
  }
  return end;
}

inline __device__ int64_t count_members(const int64_t* labels, int64_t end, int64_t label) {
  int64_t count = 0;
  for (int64_t base = 0; base < end; base += kWarp)
    count += __popc(members(labels, base, end, label));
  return count;
}

// Calls body(sample) for each sample with this label, in order.
template <typename Body>
__device__ void for_members(const int64_t* labels, int64_t end, int64_t label, const Body& body) {
  for (int64_t base = 0; base < end; base += kWarp) {
    unsigned found = members(labels, base, end, label);
    while (found != 0) {
      body(base + __ffs(static_cast<int>(found)) - 1);
      found &= found - 1;
    }
  }
}

// Whether a label of the batch lies out of [0, classes).
inline __device__ bool any_stray_label(const int64_t* labels, int64_t end, int64_t classes) {
  bool stray = false;
  for (int64_t base = 0; base < end; base += kWarp) {
    const int64_t i = base + lane_id();
    const bool here = i < end && (labels[i] < 0 || labels[i] >= classes);
    stray = stray || __ballot_sync(kFullWarp, here) != 0;
  }
  return stray;
}

}  // namespace ltdd::cuda
