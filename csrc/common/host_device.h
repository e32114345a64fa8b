#pragma once

// Marks a function for both sides: under nvcc it is compiled for host and device, elsewhere it has
// internal linkage, so that files compiled for different instruction sets share no copy of it. The
// headers of this folder include neither torch nor CUDA headers: one test on the CPU tests the
// formula that the GPU runs.
#if defined(__CUDACC__)
#define LTDD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LTDD_HOST_DEVICE [[maybe_unused]] static inline
#endif
