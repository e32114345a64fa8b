// norm_act: batch or instance norm as they train, ReLU, 2x2 average pool, and the row moments of x.
//
//   y = pool(act(k x + h)),   k = weight r, h = bias - mean k, r = 1 / sqrt(var + eps)
//
// mean and var are those of a channel over the batch or over each image by itself. Three steps: the
// moments of each row as in row_moments; k and h of each mean (norm_scales.h); y, element by
// element (row_maps.h, pixel_maps.h, flat.h). Traffic: reads x twice and writes y. Deterministic:
// no atomics, and the grid depends on the shape alone.

#include "norm_scales.h"

namespace ltdd::cuda {
namespace {

template <typename scalar_t>
struct NormActMap : NothingBesidesX {
  using acc_t = acc_type<scalar_t>;
  using Coefficients = ScaleShift<acc_t>;
  static constexpr int kStreams = 1;
  static constexpr bool kToOutputs = true;

  TrainedNorms<acc_t> norms;
  acc_t least;  // see activate

  __device__ Coefficients coefficients(int64_t row, int64_t channel) const {
    return norms.at(row, channel).channel;
  }

  template <typename Units, typename Lookup>
  __device__ void apply(const Units&, int64_t, int, const Lookup& at, const Operands<Units>&,
                        const typename Units::template Raw<scalar_t>& raw,
                        acc_t (&values)[Units::kElements]) const {
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e) values[e] = activate(at(e)(raw[e]), least);
  }

  template <int V, typename Operands>
  __device__ void apply_pixel(int64_t, int, const Coefficients* at, const Operands&,
                              const Pack<scalar_t, V>& raw, acc_t (&values)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = activate(at[v](raw[v]), least);
  }
};

}  // namespace

// The parts of split rows, then the table: the first are read no more when the second is written.
size_t norm_act_scratch_bytes(const Activation& shape, const NormAct& norm) {
  return std::max(row_moments_scratch_bytes(shape), table_bytes(shape, norm));
}

void norm_act(const Activation& shape, const NormAct& norm, const void* x, void* y, double* mean,
              double* m2, void* scratch, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  row_moments(shape, x, mean, m2, scratch, stream);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_type(shape.type, [&]<typename scalar_t>() {
    using acc_t = acc_type<scalar_t>;
    const auto table = launch_norm_scales<acc_t>(norm_rows(shape, norm), mean, m2, norm.weight,
                                                 norm.bias, scratch, on);
    const NormActMap<scalar_t> map{
        {}, {table.coefficients, norm.per_image}, least_of<acc_t>(norm.relu)};
    const scalar_t* in = static_cast<const scalar_t*>(x);
    scalar_t* out = static_cast<scalar_t*>(y);
    const bool aligned = all_aligned({x, y});
    if (!norm.pool && takes_flat<scalar_t>(shape, aligned))
      return launch_flat_map(shape, in, out, map, on);
    for_units<scalar_t, false>(
        shape, norm.pool, aligned,
        [&](const auto& units) { launch_row_map(shape, units, in, out, map, on); },
        [&]<int V>(const auto& pixels) { launch_pixel_map<V>(shape, pixels, in, out, map, on); });
  });
  check_launch("norm_act");
}

}  // namespace ltdd::cuda
