// The kernels for the instruction set that every file of the project is compiled for.

#include "isa_headers.h"

#define LTDD_ISA baseline
#define LTDD_VECTOR_BYTES 16
#include "isa_kernels.h"

const ltdd::Kernels& ltdd::baseline_kernels(Storage storage) {
  return ltdd::baseline::choose(storage);
}
const ltdd::Conv3x3Kernels& ltdd::baseline_conv3x3_kernels(Storage storage, int64_t in,
                                                           int64_t out) {
  return ltdd::baseline::choose_conv3x3(storage, in, out);
}
