#pragma once

// The gradient that the moments of a row send back to it, affine in x:
//
//   dx = grad_mean / S + 2 grad_m2 (x - mean)

#include "vector.h"

namespace ltdd::cuda {

template <typename acc_t>
struct AffineInX {
  acc_t shift, slope, mean;

  __device__ acc_t operator()(acc_t x) const { return shift + slope * (x - mean); }
};

template <typename acc_t>
struct RowGradients {
  const acc_t *grad_mean, *grad_m2, *mean;  // (N, C)
  acc_t inverse_size;

  __device__ AffineInX<acc_t> at(int64_t row) const {
    return {grad_mean[row] * inverse_size, 2 * grad_m2[row], mean[row]};
  }
};

template <typename acc_t>
RowGradients<acc_t> row_gradients(const void* grad_mean, const void* grad_m2, const void* mean,
                                  int64_t size) {
  return {static_cast<const acc_t*>(grad_mean), static_cast<const acc_t*>(grad_m2),
          static_cast<const acc_t*>(mean), acc_t(1) / static_cast<acc_t>(size)};
}

}  // namespace ltdd::cuda
