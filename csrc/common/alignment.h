#pragma once

// The alignment objective, seen from one channel of one layer.
//
//   loss = w (|m - tm|_2 + |v - tv|_2), norms over the channels of the layer,
//
// with m, v the mean and biased variance of the channel over a group of rows (the whole batch, or
// the rows of one class) and tm, tv their targets. A row is the image mean and m2 of one sample.
// Merging R rows of S elements each: m = mean of the row means,
// v = (sum m2 + S sum (row mean - m)^2) / (R S). Hence
//
//   dv/d(row m2) = 1 / (R S),   dm/d(row mean) = 1 / R,   dv/d(row mean) = 2 (row mean - m) / R.

#include "host_device.h"

namespace ltdd {

// Biased variance of a group from the sums over its rows; rows * size elements.
LTDD_HOST_DEVICE double group_var(double sum_m2, double sum_mean_gap2, double rows, double size) {
  return (sum_m2 + size * sum_mean_gap2) / (rows * size);
}

// Derivative of w * |gap|_2 by one entry of the gap; 0 where the norm is 0, NaN stays NaN.
LTDD_HOST_DEVICE double norm_gradient(double weight, double gap, double norm) {
  return norm == 0.0 ? 0.0 : weight * gap / norm;
}

// What one group adds to the gradient of a row in it; d_mean, d_var are the derivatives of the
// loss by the group's m and v.
struct RowGradient {
  double mean;
  double m2;
};

LTDD_HOST_DEVICE RowGradient row_gradient(double d_mean, double d_var, double row_mean,
                                          double group_mean, double rows, double size) {
  return {(d_mean + 2.0 * d_var * (row_mean - group_mean)) / rows, d_var / (rows * size)};
}

}  // namespace ltdd
