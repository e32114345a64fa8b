#pragma once

// What the kernels take from CUDA, in one place: 16-bit types, warps, launches and their errors.
//
// No torch header is included anywhere below a .cu file: the kernels compile in seconds, with any
// torch or none. They also compile without CUDA: with LTDD_CUDA_EMULATION a header of the tests
// supplies the same names on the host (one fiber per thread), so kernels keep to plain loads and
// stores, shuffles, ballots and barriers.

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef LTDD_CUDA_EMULATION
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace ltdd::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

// float64 stays float64, everything else is accumulated and returned in float32.
template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

#ifndef LTDD_CUDA_EMULATION
// kernel<<<grid, block, shared_bytes, stream>>>(args...), with arguments converted to the kernel's.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Args&... args) {
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
}
#endif

// Reports a launch that was refused (bad configuration, no kernel image for this GPU). It does not
// wait for the kernel, so it is allowed while a graph is captured.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) +
                             ": CUDA launch failed: " + cudaGetErrorString(error));
}

template <typename T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Smallest power of two >= value.
__host__ __device__ constexpr int power_of_two_above(int64_t value, int limit) {
  int power = 1;
  while (power < value && power < limit) power *= 2;
  return power;
}

// Sum over the aligned group of kLanes lanes that holds this lane; every lane gets it, and every
// lane adds in the same order.
template <int kLanes, typename acc_t>
__device__ __forceinline__ acc_t sum_over_lanes(acc_t value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

}  // namespace ltdd::cuda
