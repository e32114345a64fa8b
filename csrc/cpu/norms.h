#pragma once

// The norm that norm_act and its gradients work with.

#include <vector>

#include "../common/norm.h"
#include "tensors.h"

namespace ltdd {

// Of every row what is subtracted, 1 / standard deviation, and both as scale and offset.
class Norms {
 public:
  Norms(const Activation& a, const Tensor& weight, const Tensor& bias, bool per_image, double eps)
      : n_(a.n),
        c_(a.c),
        s_(static_cast<double>(a.s)),
        per_image_(per_image),
        in_double_(acc_dtype(a.tensor.scalar_type()) == ScalarType::Double),
        eps_(eps),
        weights_(contiguous_as(weight, ScalarType::Double)),
        biases_(contiguous_as(bias, ScalarType::Double)),
        centers_(empty_rows(a)),
        scales_(empty_scales(a, per_image)),
        offsets_(empty_scales(a, per_image)),
        inverse_sds_(static_cast<size_t>(a.n * a.c)),
        weight(const_row_data(weights_)),
        bias(const_row_data(biases_)),
        center(row_data(centers_)),
        inverse_sd(inverse_sds_.data()),
        k(scales_.mutable_data_ptr()),
        h(offsets_.mutable_data_ptr()) {}

  // From the row moments of [first, last); over the batch, from all of them.
  void find(const double* mean, const double* m2, int64_t first, int64_t last) {
    for (int64_t row = first; row < last && per_image_; ++row) {
      set(row, mean[row], m2[row] / s_);
      set_scale(row, row);
    }
    for (int64_t c = 0; c < c_ && !per_image_; ++c) {
      double batch_mean = 0.0, batch_m2 = 0.0;
      for (int64_t row = c; row < last; row += c_) batch_mean += mean[row];
      batch_mean /= static_cast<double>(n_);
      for (int64_t row = c; row < last; row += c_) {
        const double gap = mean[row] - batch_mean;
        batch_m2 += m2[row] + s_ * gap * gap;
      }
      const double var = batch_m2 / (s_ * static_cast<double>(n_));
      for (int64_t row = c; row < last; row += c_) set(row, batch_mean, var);
      set_scale(c, c);
    }
  }

  Norm at(int64_t row) const { return {center[row], inverse_sd[row]}; }

 private:
  static Tensor empty_scales(const Activation& a, bool per_image) {
    const int64_t length = per_image ? a.n * a.c : a.c;
    return new_empty(a.tensor, {&length, 1}, acc_dtype(a.tensor.scalar_type()));
  }

  void set(int64_t row, double mean, double var) {
    const Norm norm = norm_of(mean, var, eps_);
    center[row] = norm.mean;
    inverse_sd[row] = norm.inverse_sd;
  }

  void set_scale(int64_t to, int64_t row) {
    const auto [scale, offset] = norm_scale(at(row), weight[row % c_], bias[row % c_]);
    if (in_double_) {
      static_cast<double*>(k)[to] = scale;
      static_cast<double*>(h)[to] = offset;
    } else {
      static_cast<float*>(k)[to] = static_cast<float>(scale);
      static_cast<float*>(h)[to] = static_cast<float>(offset);
    }
  }

  const int64_t n_, c_;
  const double s_;
  const bool per_image_, in_double_;
  const double eps_;
  const Tensor weights_, biases_;
  Tensor centers_, scales_, offsets_;
  std::vector<double> inverse_sds_;

 public:
  const double *const weight, *const bias;  // [C]
  double *const center, *const inverse_sd;  // [N, C]
  void *const k, *const h;                  // acc_t [C], or [N, C]
};

}  // namespace ltdd
