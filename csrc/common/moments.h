#pragma once

// Moments of a set of numbers: how many, their mean, and m2 = sum of (x - mean)^2.
//
// Everything the extension measures is a merge of such triples (Chan, Golub, LeVeque 1979): it is
// exact in real arithmetic, never subtracts two large numbers, and lets NaN and Inf through.
// Letters: N batch, C channels, S = H*W, K classes.

#include "host_device.h"

namespace ltdd {

template <typename acc_t>
struct Moments {
  acc_t count;
  acc_t mean;
  acc_t m2;
};

// Moments of the union of two disjoint sets; either may be empty.
template <typename acc_t>
LTDD_HOST_DEVICE Moments<acc_t> merge(const Moments<acc_t>& a, const Moments<acc_t>& b) {
  const acc_t count = a.count + b.count;
  if (count == acc_t(0)) return a;
  const acc_t delta = b.mean - a.mean;
  const acc_t share = b.count / count;
  const bool finite = a.mean - a.mean == acc_t(0);  // an infinite mean must not turn into NaN
  return {count, finite ? a.mean + delta * share : a.mean + b.mean,
          a.m2 + b.m2 + delta * delta * (a.count * share)};
}

// The same for two sets of equal, non-zero size: no division, as a tree or a shuffle wants it.
template <typename acc_t>
LTDD_HOST_DEVICE Moments<acc_t> merge_equal(const Moments<acc_t>& a, const Moments<acc_t>& b) {
  const acc_t delta = b.mean - a.mean;
  const acc_t half = acc_t(0.5);
  return {a.count + b.count, (a.mean + b.mean) * half,
          a.m2 + b.m2 + delta * delta * (a.count * half)};
}

// Moments of `count` numbers from their shifted sums, d = x - pivot. Exact when the pivot lies
// near the mean: with the pivot a first estimate of the mean, (sum d)^2 / count only corrects it.
template <typename acc_t>
LTDD_HOST_DEVICE Moments<acc_t> from_shifted_sums(acc_t count, acc_t pivot, acc_t sum_d,
                                                  acc_t sum_d2) {
  const acc_t shift = sum_d / count;
  const bool finite = pivot - pivot == acc_t(0);  // an infinite pivot must not turn into NaN
  return {count, finite ? pivot + shift : pivot, sum_d2 - sum_d * shift};
}

// Running statistics of one (class, channel), always double. mu is the mean over images of the
// image mean, `within` the sum over images of m2/S, `between` the sum over images of
// (image mean - mu)^2. How many images were seen is kept once per class, not here.
struct ClassChannelState {
  double mu;
  double within;
  double between;
};

// Adds one image: the merge above with a set of one, i.e. momentum 1/(n+1). Images are added one
// by one, in the order of the batch, so the state does not depend on how they were batched.
// inverse_count = 1.0 / (images seen so far + 1); image_var = m2 / S of the image.
LTDD_HOST_DEVICE void add_image(ClassChannelState& state, double inverse_count, double image_mean,
                                double image_var) {
  const double delta = image_mean - state.mu;
  state.mu += delta * inverse_count;
  state.between += delta * (image_mean - state.mu);
  state.within += image_var;
}

// Adds the images of another state: counts are those of the two sides before the merge.
LTDD_HOST_DEVICE void merge_state(ClassChannelState& state, double count,
                                  const ClassChannelState& other, double other_count) {
  if (other_count == 0.0) return;
  const Moments<double> merged =
      merge<double>({count, state.mu, state.between}, {other_count, other.mu, other.between});
  state.mu = merged.mean;
  state.between = merged.m2;
  state.within += other.within;
}

}  // namespace ltdd
