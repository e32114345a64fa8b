// bn_act_moments: frozen batch norm, residual, ReLU, 2x2 average pool and the row moments of x.
//
//   y = pool(act(k x + h + residual)),   mean, m2 of x as in row_moments
//
// k, h: one pair per channel, frozen. Layouts and parallelisation: rows.h, pixels.h; y comes from
// the registers that the moments come from. Traffic: reads x (and residual), writes y.
// Deterministic: no atomics, and the grid depends on the shape alone.

#include "bn_act.h"

namespace ltdd::cuda {
namespace {

template <typename scalar_t, bool kResidual>
struct BnActEpilogue {
  using acc_t = acc_type<scalar_t>;
  static constexpr bool kWrites = true;
  static constexpr int kStreams = kResidual ? 2 : 1;

  const acc_t *k, *h;        // [C]
  const scalar_t* residual;  // like x
  scalar_t* y;
  bool relu;

  template <int V>
  struct ChannelCoefficients {
    ScaleShift<acc_t> channel[V];
  };
  template <int kElements>
  struct Operands {
    Residual<acc_t, kElements, kResidual> residual;
  };
  template <int kElements, int V>
  struct PixelOperands {
    Residual<acc_t, V, kResidual> residual[kElements];
  };

  __device__ ScaleShift<acc_t> coefficients(int64_t channel) const {
    return {k[channel], h[channel]};
  }

  template <typename Units>
  __device__ void load(const Units& units, int64_t start, int unit,
                       Operands<Units::kElements>& operands) const {
    if constexpr (kResidual) units.load_unit(residual + start, unit, operands.residual.value);
  }

  // at(e): the coefficients of element e of the unit; start: where the outputs of its row start.
  template <typename Units, typename Coefficients>
  __device__ void write(const Units& units, int64_t start, int unit, const Coefficients& at,
                        const Operands<Units::kElements>& operands,
                        const acc_t (&values)[Units::kElements]) const {
    acc_t out[Units::kElements];
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e)
      out[e] = activate(operands.residual.add_to(at(e)(values[e]), e), relu);
    units.store_output(y + start, unit, out);
  }

  template <int V>
  __device__ ChannelCoefficients<V> channel_coefficients(int64_t channel) const {
    ChannelCoefficients<V> at;
#pragma unroll
    for (int v = 0; v < V; ++v) at.channel[v] = coefficients(channel + v);
    return at;
  }

  template <int V, typename Operands>
  __device__ void load_pixel(int64_t offset, int e, Operands& operands) const {
    if constexpr (kResidual) cuda::load<V>(residual + offset, operands.residual[e].value);
  }

  template <int V, int kElements>
  __device__ void write_pixel(int64_t offset, const ChannelCoefficients<V>& at,
                              const PixelOperands<kElements, V>& operands,
                              const acc_t (&values)[kElements][V]) const {
    acc_t out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      acc_t sum = 0;
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        sum += activate(operands.residual[e].add_to(at.channel[v](values[e][v]), v), relu);
      out[v] = sum * (acc_t(1) / kElements);
    }
    store<V>(y + offset, out);
  }
};

}  // namespace

size_t bn_act_moments_scratch_bytes(const Activation& shape, bool residual, bool pool) {
  const int streams =
      residual ? BnActEpilogue<float, true>::kStreams : BnActEpilogue<float, false>::kStreams;
  return pool ? scratch_bytes<PooledPixels>(shape, streams)
              : scratch_bytes<LinearPixels>(shape, streams);
}

void bn_act_moments(const Activation& shape, const BnAct& fused, const void* x, void* y,
                    double* mean, double* m2, void* scratch, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_variant(shape.type, fused.residual, [&]<typename scalar_t, bool kResidual>() {
    using Epilogue = BnActEpilogue<scalar_t, kResidual>;
    using acc_t = acc_type<scalar_t>;
    const Epilogue epilogue{static_cast<const acc_t*>(fused.k), static_cast<const acc_t*>(fused.h),
                            static_cast<const scalar_t*>(fused.residual), static_cast<scalar_t*>(y),
                            fused.relu};
    const scalar_t* in = static_cast<const scalar_t*>(x);
    const bool aligned = all_aligned({x, y, fused.residual});
    if (!fused.pool && takes_flat<scalar_t>(shape, aligned))
      return launch_flat(shape, in, mean, m2, epilogue, on);
    for_units<scalar_t, kResidual>(
        shape, fused.pool, aligned,
        [&](const auto& units) { launch_rows(shape, units, in, mean, m2, epilogue, on); },
        [&]<int V>(const auto& pixels) {
          launch_pixels<V>(shape, pixels, in, mean, m2, scratch, epilogue, on);
        });
  });
  check_launch("bn_act_moments");
}

}  // namespace ltdd::cuda
