#pragma once

// The gradient that the moments of a row send back to it, affine in x:
//
//   dx = grad_mean / S + 2 grad_m2 (x - mean) = shift + slope (x - center)
//
// center is the mean as acc_t can hold it; what that leaves out goes into the shift.

#include "vector.h"

namespace ltdd::cuda {

template <typename acc_t>
struct AffineInX {
  acc_t shift, slope, center;

  __device__ acc_t operator()(acc_t x) const { return shift + slope * (x - center); }
};

template <typename acc_t>
struct RowGradients {
  const double *grad_mean, *grad_m2, *mean;  // (N, C)
  double inverse_size;

  __device__ AffineInX<acc_t> at(int64_t row) const {
    const double slope = 2 * grad_m2[row];
    const acc_t center = static_cast<acc_t>(mean[row]);
    const double shift = grad_mean[row] * inverse_size - slope * (mean[row] - double(center));
    return {static_cast<acc_t>(shift), static_cast<acc_t>(slope), center};
  }
};

template <typename acc_t>
RowGradients<acc_t> row_gradients(const double* grad_mean, const double* grad_m2,
                                  const double* mean, int64_t size) {
  return {grad_mean, grad_m2, mean, 1.0 / static_cast<double>(size)};
}

}  // namespace ltdd::cuda
