#pragma once

// Loads and stores of V neighbouring elements, widened to the accumulation type.

#include "platform.h"

namespace ltdd::cuda {

inline constexpr int kVectorBytes = 16;

template <typename scalar_t>
inline constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(scalar_t));

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds to nearest even, as torch does.
template <typename scalar_t>
__device__ __forceinline__ scalar_t narrow(acc_type<scalar_t> value) {
  if constexpr (std::is_same_v<scalar_t, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

template <typename scalar_t, int V>
struct alignas(sizeof(scalar_t) * V) Pack {
  scalar_t lane[V];
};

// One memory instruction of V * sizeof(scalar_t) bytes; source is aligned to that.
template <int V, typename scalar_t>
__device__ __forceinline__ void load(const scalar_t* source, acc_type<scalar_t> (&values)[V]) {
  const Pack<scalar_t, V> pack = *reinterpret_cast<const Pack<scalar_t, V>*>(source);
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = widen(pack.lane[i]);
}

template <int V, typename scalar_t>
__device__ __forceinline__ void store(scalar_t* target, const acc_type<scalar_t> (&values)[V]) {
  Pack<scalar_t, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.lane[i] = narrow<scalar_t>(values[i]);
  *reinterpret_cast<Pack<scalar_t, V>*>(target) = pack;
}

template <typename acc_t>
__device__ __forceinline__ bool is_finite(acc_t value) {
  return value - value == acc_t(0);
}

// A number of the row, to subtract before anything is summed: |pivot - mean|^2 <= m2, whatever the
// offset of the data. An element that is not finite would spoil the others.
template <typename acc_t>
__device__ __forceinline__ acc_t pivot_from(acc_t element) {
  return is_finite(element) ? element : acc_t(0);
}

// The center of a set: the number of the storage type next to a first estimate of its mean. From
// there the differences to 16-bit numbers are exact, and those to others lose a rounding of the
// spread.
template <typename scalar_t>
__device__ __forceinline__ acc_type<scalar_t> center_from(acc_type<scalar_t> estimate) {
  return widen(narrow<scalar_t>(estimate));
}

// What the mean has beyond the center. Differences to an infinite center are NaN, but that center
// is the mean.
template <typename acc_t>
__device__ __forceinline__ acc_t rest_of_mean(acc_t center, acc_t mean_gap) {
  return is_finite(center) ? mean_gap : acc_t(0);
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace ltdd::cuda
