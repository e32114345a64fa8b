#pragma once

// Loads and stores of V neighbouring elements, widened to the accumulation type.

#include <cstring>

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

// Rounds two numbers by one instruction; the first is the lower half.
template <typename scalar_t>
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<scalar_t, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  }
  return bits;
}

__device__ __forceinline__ float half_of(uint32_t pair, bool upper) {
  const uint16_t bits = static_cast<uint16_t>(upper ? pair >> 16 : pair);
  __half half;
  memcpy(&half, &bits, sizeof(half));
  return __half2float(half);
}

// V neighbours as they lie in memory, moved by one instruction; their address is aligned to that.
// Two 16-bit numbers share a register, from which one instruction widens either.
template <typename scalar_t, int V, bool kPairs = sizeof(scalar_t) == 2 && V % 2 == 0>
struct alignas(sizeof(scalar_t) * V) Pack {
  scalar_t lane[V];

  __device__ acc_type<scalar_t> operator[](int i) const { return widen(lane[i]); }
  __device__ void round(const acc_type<scalar_t> (&values)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) lane[i] = narrow<scalar_t>(values[i]);
  }
};

template <typename scalar_t, int V>
struct alignas(sizeof(scalar_t) * V) Pack<scalar_t, V, true> {
  uint32_t pair[V / 2];

  __device__ float operator[](int i) const {
    if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>)
      return __uint_as_float(i % 2 == 0 ? pair[i / 2] << 16 : pair[i / 2] & 0xffff0000u);
    else
      return half_of(pair[i / 2], i % 2 != 0);
  }
  __device__ void round(const float (&values)[V]) {
#pragma unroll
    for (int i = 0; i < V; i += 2) pair[i / 2] = round_pair<scalar_t>(values[i], values[i + 1]);
  }
};

// Loads stay as they come: a use, such as widening, makes the thread wait, and should follow when
// all loads of a tile are on their way.
template <int V, typename scalar_t>
__device__ __forceinline__ Pack<scalar_t, V> load(const scalar_t* source) {
  return *reinterpret_cast<const Pack<scalar_t, V>*>(source);
}

template <int V, typename scalar_t>
__device__ __forceinline__ void store(scalar_t* target, const Pack<scalar_t, V>& pack) {
  *reinterpret_cast<Pack<scalar_t, V>*>(target) = pack;
}

template <int V, typename scalar_t>
__device__ __forceinline__ void store(scalar_t* target, const acc_type<scalar_t> (&values)[V]) {
  Pack<scalar_t, V> pack;
  pack.round(values);
  store<V>(target, pack);
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

// The 64-bit product of two numbers of 32 bits. Said to the compiler, which would widen the second
// one outside of a loop and then multiply 64 bits by 64 bits inside.
__device__ __forceinline__ int64_t wide_product(int a, int b) {
#ifdef __CUDA_ARCH__
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return int64_t(a) * b;
#endif
}

template <typename T>
__device__ __forceinline__ T* bytes_on(T* pointer, int64_t bytes) {
  using byte_t = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<byte_t*>(pointer) + bytes);
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace ltdd::cuda
