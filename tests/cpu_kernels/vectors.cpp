// One function for everything that vec.h has intrinsics for, so that a test can read what a
// compiler makes of each.

#include "cpu/isa_headers.h"

#define LTDD_VECTOR_BYTES 16

namespace {
#include "cpu/vec.h"
}

extern "C" {

void widen_bf16(const uint16_t* x, float* y) {
  store(y, load(reinterpret_cast<const BFloat16*>(x)));
}
void widen_half(const uint16_t* x, float* y) { store(y, load(reinterpret_cast<const Half*>(x))); }
void narrow_bf16(const float* x, uint16_t* y) { store(reinterpret_cast<BFloat16*>(y), load(x)); }
void narrow_half(const float* x, uint16_t* y) { store(reinterpret_cast<Half*>(y), load(x)); }
void stream_float(const float* x, float* y) { store_streaming(y, load(x)); }
void stream_double(const double* x, double* y) { store_streaming(y, load(x)); }
void stream_bf16(const float* x, uint16_t* y) {
  store_streaming(reinterpret_cast<BFloat16*>(y), load(x));
}
void stream_half(const float* x, uint16_t* y) {
  store_streaming(reinterpret_cast<Half*>(y), load(x));
}
}
