#pragma once

// A norm by the statistics of its own input, seen from one mean: that of a channel over the batch,
// or over one image.
//
//   y = weight r (x - mean) + bias,   r = 1 / sqrt(var + eps)
//
// With g the gradient of y, and sums over the M elements that share the mean:
//
//   d bias = sum g,   d weight = r sum g (x - mean)
//   dx = k g - k / M sum g - k r^2 / M (x - mean) sum g (x - mean),   k = weight r

#include <cmath>

#include "host_device.h"

namespace ltdd {

struct Norm {
  double mean, inverse_sd;
};

LTDD_HOST_DEVICE Norm norm_of(double mean, double var, double eps) {
  return {mean, 1.0 / std::sqrt(var + eps)};
}

// The norm as scale x + offset.
struct NormScale {
  double scale, offset;
};

LTDD_HOST_DEVICE NormScale norm_scale(const Norm& norm, double weight, double bias) {
  const double scale = weight * norm.inverse_sd;
  return {scale, bias - norm.mean * scale};
}

// What the statistics of x add to dx: shift + slope (x - mean).
struct NormPullback {
  double shift, slope;
};

LTDD_HOST_DEVICE NormPullback norm_pullback(const Norm& norm, double weight, double sum_g,
                                            double sum_gx, double elements) {
  const double r = norm.inverse_sd, k = weight * r;
  return {-k * sum_g / elements, -k * r * r * sum_gx / elements};
}

}  // namespace ltdd
