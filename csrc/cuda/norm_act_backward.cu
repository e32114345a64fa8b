// norm_act_backward: the gradient of y, back to x, weight and bias.
//
// Equations: common/norm.h, with g = spread(grad_y) where act passes. Four steps: scale and offset
// of each mean again (norm_scales.h); sum g and sum g (x - mean) of each row, or part of a plane;
// their sums over images, in double; dx, element by element. The mask of the ReLU is computed again
// from x. Traffic: reads x and grad_y twice and writes dx. Deterministic: no atomics, and the grid
// depends on the shape alone.

#include "norm_scales.h"

namespace ltdd::cuda {
namespace {

// What the sums add to dx goes into the table. The sums are about the mean as acc_t holds it.
template <typename acc_t>
__global__ void __launch_bounds__(kTableSide* kTableSide)
    norm_sums_kernel(NormRows rows, int splits,
                     const double* __restrict__ sums,   // (2, N * splits, C)
                     const acc_t* __restrict__ weight,  // [C]
                     NormTable<acc_t> table,
                     acc_t* __restrict__ grad_weight,  // [C]
                     acc_t* __restrict__ grad_bias) {  // [C]
  const int64_t channel = int64_t(blockIdx.x) * kTableSide + threadIdx.x;
  const bool active = channel < rows.channels;
  const int64_t all = rows.images * splits * rows.channels;
  const auto complete = [&](int64_t at, double sum, double sum_x, double elements) {
    const Norm norm = table.norms[at];
    AffineInX<acc_t>& moments = table.coefficients[at].moments;
    const auto [shift, slope] =
        norm_pullback(norm, static_cast<double>(weight[channel]), sum, sum_x, elements);
    moments.slope = static_cast<acc_t>(slope);
    moments.shift =
        static_cast<acc_t>(shift - slope * (norm.mean - static_cast<double>(moments.center)));
  };
  double sum_bias = 0, sum_weight = 0;
  for (int64_t image = threadIdx.y; active && image < rows.images; image += kTableSide) {
    double sum = 0, sum_x = 0;
    for (int split = 0; split < splits; ++split) {
      const int64_t at = (image * splits + split) * rows.channels + channel;
      sum += sums[at];
      sum_x += sums[all + at];
    }
    const int64_t mean = rows.mean_of(image, channel);
    const Norm norm = table.norms[mean];
    sum_x += sum * (static_cast<double>(table.coefficients[mean].moments.center) - norm.mean);
    if (rows.per_image) complete(mean, sum, sum_x, rows.size);
    sum_bias += sum;
    sum_weight += sum_x * norm.inverse_sd;
  }
  sum_bias = sum_over_lines(sum_bias);
  sum_weight = sum_over_lines(sum_weight);
  if (!active || threadIdx.y > 0) return;
  grad_bias[channel] = static_cast<acc_t>(sum_bias);
  grad_weight[channel] = static_cast<acc_t>(sum_weight);
  if (!rows.per_image)
    complete(channel, sum_bias, sum_weight / table.norms[channel].inverse_sd,
             rows.size * static_cast<double>(rows.images));
}

// Numbers in (2, N * splits, C).
size_t sums_count(const Activation& shape, bool pool) {
  constexpr int kStreams = BnActGradient<float, TrainedNorms<float>, Beside::kNothing>::kStreams;
  const int splits = pool ? most_splits<PooledPixels>(shape, kStreams)
                          : most_splits<LinearPixels>(shape, kStreams);
  return 2 * static_cast<size_t>(shape.rows()) * static_cast<size_t>(splits);
}

}  // namespace

size_t norm_act_backward_scratch_bytes(const Activation& shape, const NormAct& norm) {
  return sizeof(double) * sums_count(shape, norm.pool) + table_bytes(shape, norm);
}

void norm_act_backward(const Activation& shape, const NormAct& norm, const void* grad_y,
                       const void* x, const double* mean, const double* m2, void* dx,
                       void* grad_weight, void* grad_bias, void* scratch, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_type(shape.type, [&]<typename scalar_t>() {
    using acc_t = acc_type<scalar_t>;
    double* sums = static_cast<double*>(scratch);
    const NormRows rows = norm_rows(shape, norm);
    const auto table = launch_norm_scales<acc_t>(rows, mean, m2, norm.weight, norm.bias,
                                                 sums + sums_count(shape, norm.pool), on);
    const BnActGradient<scalar_t, TrainedNorms<acc_t>, Beside::kNothing> gradient{
        {table.coefficients, norm.per_image}, nullptr, nullptr,
        static_cast<const scalar_t*>(grad_y), nullptr, nullptr,
        blocked_by<acc_t>(norm.relu)};
    const scalar_t* in = static_cast<const scalar_t*>(x);
    scalar_t* out = static_cast<scalar_t*>(dx);
    const bool aligned = all_aligned({x, dx, grad_y});
    const auto by_layout = [&](const auto& on_rows, const auto& on_pixels) {
      for_units<scalar_t, false>(shape, norm.pool, aligned, on_rows, on_pixels);
    };
    int splits = 1;
    by_layout([&](const auto& units) { launch_row_sums(shape, units, in, sums, gradient, on); },
              [&]<int V>(const auto& pixels) {
                splits = launch_pixel_sums<V>(shape, pixels, in, sums, gradient, on);
              });
    launch(&norm_sums_kernel<acc_t>,
           dim3(static_cast<unsigned>(ceil_div<int64_t>(rows.channels, kTableSide))),
           dim3(kTableSide, kTableSide), 0, on, rows, splits, sums,
           static_cast<const acc_t*>(norm.weight), table, static_cast<acc_t*>(grad_weight),
           static_cast<acc_t*>(grad_bias));
    if (!norm.pool && takes_flat<scalar_t>(shape, aligned))
      return launch_flat_map(shape, in, out, gradient, on);
    by_layout([&](const auto& units) { launch_row_map(shape, units, in, out, gradient, on); },
              [&]<int V>(const auto& pixels) {
                launch_pixel_map<V>(shape, pixels, in, out, gradient, on);
              });
  });
  check_launch("norm_act_backward");
}

}  // namespace ltdd::cuda
