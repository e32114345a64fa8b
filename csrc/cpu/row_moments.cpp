// row_moments: mean and m2 of every (sample, channel), and its gradient.
//
//   mean[n,c] = sum_s x / S,   m2[n,c] = sum_s (x - mean)^2,   dx = grad_mean / S + 2 grad_m2 (x -
//   mean)
//
// A row is cut in chunks of kChunk elements that stay in the first-level cache: a first pass gives
// a pivot, a second the shifted sums (common/moments.h), and chunks are merged in double, in order.
// NHWC: the same, kBlock channels side by side, a chunk being kPixelChunk pixels.
// Traffic: forward reads x once, backward reads x and writes dx. One task computes whole rows, so
// results do not depend on the number of threads.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/moments.h"
#include "tensors.h"

namespace ltdd {
namespace {

constexpr int64_t kChunk = 1024;
constexpr int64_t kPixelChunk = 128;
constexpr int64_t kBlock = 32;
constexpr int64_t kLanes = 16;

template <typename acc_t>
acc_t sum_lanes(const acc_t* lanes) {
  acc_t sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

template <typename scalar_t, typename acc_t>
Moments<double> chunk_moments(const scalar_t* x, int64_t count) {
  acc_t lanes[kLanes] = {};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<acc_t>(x[i + j]);
  for (int64_t i = whole; i < count; ++i) lanes[i - whole] += static_cast<acc_t>(x[i]);
  const acc_t pivot = sum_lanes(lanes) / static_cast<acc_t>(count);

  acc_t d_lanes[kLanes] = {}, d2_lanes[kLanes] = {};
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      const acc_t d = static_cast<acc_t>(x[i + j]) - pivot;
      d_lanes[j] += d;
      d2_lanes[j] += d * d;
    }
  for (int64_t i = whole; i < count; ++i) {
    const acc_t d = static_cast<acc_t>(x[i]) - pivot;
    d_lanes[i - whole] += d;
    d2_lanes[i - whole] += d * d;
  }
  return from_shifted_sums<double>(static_cast<double>(count), pivot, sum_lanes(d_lanes),
                                   sum_lanes(d2_lanes));
}

template <typename scalar_t, typename acc_t>
void moments_of_row(const scalar_t* x, int64_t s, acc_t* mean, acc_t* m2) {
  Moments<double> row{0.0, 0.0, 0.0};
  for (int64_t begin = 0; begin < s; begin += kChunk)
    row = merge(row, chunk_moments<scalar_t, acc_t>(x + begin, std::min(kChunk, s - begin)));
  *mean = static_cast<acc_t>(s > 0 ? row.mean : std::numeric_limits<double>::quiet_NaN());
  *m2 = static_cast<acc_t>(row.m2);
}

// x points at the first pixel of the block's first channel; pixels lie `stride` elements apart.
template <typename scalar_t, typename acc_t>
void moments_of_pixels(const scalar_t* x, int64_t s, int64_t stride, int64_t channels, acc_t* mean,
                       acc_t* m2) {
  Moments<double> rows[kBlock] = {};
  for (int64_t begin = 0; begin < s; begin += kPixelChunk) {
    const int64_t count = std::min(kPixelChunk, s - begin);
    const scalar_t* chunk = x + begin * stride;
    acc_t pivot[kBlock] = {}, sum_d[kBlock] = {}, sum_d2[kBlock] = {};
    for (int64_t p = 0; p < count; ++p)
      for (int64_t j = 0; j < channels; ++j) pivot[j] += static_cast<acc_t>(chunk[p * stride + j]);
    for (int64_t j = 0; j < channels; ++j) pivot[j] /= static_cast<acc_t>(count);
    for (int64_t p = 0; p < count; ++p)
      for (int64_t j = 0; j < channels; ++j) {
        const acc_t d = static_cast<acc_t>(chunk[p * stride + j]) - pivot[j];
        sum_d[j] += d;
        sum_d2[j] += d * d;
      }
    for (int64_t j = 0; j < channels; ++j)
      rows[j] = merge(rows[j], from_shifted_sums<double>(static_cast<double>(count), pivot[j],
                                                         sum_d[j], sum_d2[j]));
  }
  for (int64_t j = 0; j < channels; ++j) {
    mean[j] = static_cast<acc_t>(rows[j].mean);
    m2[j] = static_cast<acc_t>(rows[j].m2);
  }
}

std::tuple<Tensor, Tensor> row_moments_cpu(const Tensor& x) {  // x (N, C, H, W) or (N, C, S)
  const Activation a = as_activation("row_moments", x);
  const Tensor mean = empty_rows(a), m2 = empty_rows(a);  // (N, C)
  dispatch_floating("row_moments", x, [&]<typename scalar_t>() {
    using acc_t = acc_type<scalar_t>;
    const auto* in = static_cast<const scalar_t*>(a.tensor.const_data_ptr());
    auto* mean_out = static_cast<acc_t*>(mean.mutable_data_ptr());
    auto* m2_out = static_cast<acc_t*>(m2.mutable_data_ptr());
    if (a.layout == Layout::kRows) {
      for_each_task(a.n * a.c, a.s, [&](int64_t row) {
        moments_of_row(in + row * a.s, a.s, mean_out + row, m2_out + row);
      });
      return;
    }
    const int64_t blocks = (a.c + kBlock - 1) / kBlock;
    for_each_task(a.n * blocks, a.s * kBlock, [&](int64_t task) {
      const int64_t sample = task / blocks, channel = task % blocks * kBlock;
      const int64_t row = sample * a.c + channel;
      moments_of_pixels(in + sample * a.s * a.c + channel, a.s, a.c,
                        std::min(kBlock, a.c - channel), mean_out + row, m2_out + row);
    });
  });
  return {mean, m2};
}

Tensor row_moments_backward_cpu(const Tensor& grad_mean, const Tensor& grad_m2, const Tensor& x,
                                const Tensor& mean) {
  const char* op = "row_moments_backward";
  const Activation a = as_activation(op, x);
  check_matrix(op, "grad_mean", grad_mean, a.n, a.c);
  check_matrix(op, "grad_m2", grad_m2, a.n, a.c);
  check_matrix(op, "mean", mean, a.n, a.c);
  const ScalarType row_dtype = acc_dtype(x.scalar_type());
  const Tensor grad_means = contiguous_as(grad_mean, row_dtype);
  const Tensor grad_m2s = contiguous_as(grad_m2, row_dtype);
  const Tensor means = contiguous_as(mean, row_dtype);
  const Tensor dx = empty_like(a);
  dispatch_floating(op, x, [&]<typename scalar_t>() {
    using acc_t = acc_type<scalar_t>;
    const auto* in = static_cast<const scalar_t*>(a.tensor.const_data_ptr());
    const auto* g_mean = static_cast<const acc_t*>(grad_means.const_data_ptr());
    const auto* g_m2 = static_cast<const acc_t*>(grad_m2s.const_data_ptr());
    const auto* row_mean = static_cast<const acc_t*>(means.const_data_ptr());
    auto* out = static_cast<scalar_t*>(dx.mutable_data_ptr());
    const acc_t inverse_size = acc_t(1) / static_cast<acc_t>(a.s);
    if (a.layout == Layout::kRows) {
      for_each_task(a.n * a.c, a.s, [&](int64_t row) {
        const acc_t shift = g_mean[row] * inverse_size, slope = 2 * g_m2[row], m = row_mean[row];
        for (int64_t i = row * a.s; i < (row + 1) * a.s; ++i)
          out[i] = static_cast<scalar_t>(shift + slope * (static_cast<acc_t>(in[i]) - m));
      });
      return;
    }
    for_each_task(a.n * a.s, a.c, [&](int64_t pixel) {
      const int64_t row = pixel / a.s * a.c;
      for (int64_t j = 0; j < a.c; ++j) {
        const acc_t d = static_cast<acc_t>(in[pixel * a.c + j]) - row_mean[row + j];
        out[pixel * a.c + j] =
            static_cast<scalar_t>(g_mean[row + j] * inverse_size + 2 * g_m2[row + j] * d);
      }
    });
  });
  return dx;
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("row_moments", TORCH_BOX(&ltdd::row_moments_cpu));
  m.impl("row_moments_backward", TORCH_BOX(&ltdd::row_moments_backward_cpu));
}
