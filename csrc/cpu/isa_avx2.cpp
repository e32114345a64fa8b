// The kernels for x86-64-v3: AVX2, FMA and half conversion.

#include "isa_headers.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif

#define LTDD_ISA avx2
#define LTDD_VECTOR_BYTES 32
#include "isa_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const ltdd::Kernels& ltdd::avx2_kernels(Storage storage) { return ltdd::avx2::choose(storage); }
const ltdd::Conv3x3Kernels& ltdd::avx2_conv3x3_kernels(Storage storage, int64_t in, int64_t out) {
  return ltdd::avx2::choose_conv3x3(storage, in, out);
}

#endif
