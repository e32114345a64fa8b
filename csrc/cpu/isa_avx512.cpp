// The kernels for x86-64-v4: AVX-512 with its byte, vector-length and double-word parts.

#include "isa_headers.h"

#if defined(__x86_64__)

#if defined(__clang__)  // whose arch=x86-64-v4 prefers, and makes, vectors of 32 bytes
#pragma clang attribute push(                                                                       \
    __attribute__((target(                                                                          \
        "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe,popcnt"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#endif

#define LTDD_ISA avx512
#define LTDD_VECTOR_BYTES 64
#include "isa_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const ltdd::Kernels& ltdd::avx512_kernels(Storage storage) { return ltdd::avx512::choose(storage); }
const ltdd::Conv3x3Kernels& ltdd::avx512_conv3x3_kernels(Storage storage, int64_t in, int64_t out) {
  return ltdd::avx512::choose_conv3x3(storage, in, out);
}

#endif
