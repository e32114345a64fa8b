// The convolutions for x86-64-v4 with AMX: tiles, and products of them in bfloat16.

#include "isa_headers.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                                   \
    __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2," \
                          "lzcnt,movbe,popcnt,avx512bf16,amx-tile,amx-bf16"))),                 \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512,avx512bf16,amx-tile,amx-bf16")
#endif

#define LTDD_VECTOR_BYTES 64

namespace ltdd::amx {
namespace {

#include "vec.h"
//
#include "elementwise_kernels.h"
//
#include "panel_kernels.h"
//
#include "tile_kernels.h"
//
#include "conv3x3_tile_kernels.h"

}  // namespace
}  // namespace ltdd::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const ltdd::Conv3x3Kernels& ltdd::amx_conv3x3_kernels(Storage storage, int64_t, int64_t) {
  return storage == Storage::kBFloat16 ? ltdd::amx::kTileConv3x3<ltdd::amx::BFloat16>
                                       : ltdd::amx::kTileConv3x3<float>;
}

#endif
