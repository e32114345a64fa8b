// bn_act_moments_backward: the gradient of y and of the moments, back to x and to the residual.
//
//   g = spread(grad_y) where act passes,   dresidual = g
//   dx = k g + grad_mean / S + 2 grad_m2 (x - mean)
//
// The mask of the ReLU is computed again from x, so nothing but x (and the residual) is kept
// between the passes. Traffic: reads x, grad_y (and residual), writes dx (and dresidual).

#include "bn_act.h"
#include "moments_gradient.h"

namespace ltdd::cuda {
namespace {

template <typename scalar_t, bool kResidual>
struct BnActGradient {
  using acc_t = acc_type<scalar_t>;
  static constexpr int kStreams = kResidual ? 3 : 2;

  RowGradients<acc_t> moments;
  const acc_t *k, *h;  // [C]
  const scalar_t *residual, *grad_y;
  scalar_t* dresidual;
  bool relu;

  struct Coefficients {
    AffineInX<acc_t> moments;
    ScaleShift<acc_t> channel;
  };
  template <int V>
  struct ChannelCoefficients {
    Coefficients channel[V];
  };
  template <int kElements>
  struct Operands {
    acc_t grad[kElements];
    Residual<acc_t, kElements, kResidual> residual;
  };
  template <int kElements, int V>
  struct PixelOperands {
    acc_t grad[V];  // of each element of the unit
    Residual<acc_t, V, kResidual> residual[kElements];
  };

  __device__ Coefficients coefficients(int64_t row, int64_t channel) const {
    return {moments.at(row), {k[channel], h[channel]}};
  }

  template <typename Units>
  __device__ void load(const Units& units, int64_t start, int64_t output_start, int unit,
                       Operands<Units::kElements>& operands) const {
    units.load_output_grad(grad_y + output_start, unit, operands.grad);
    if constexpr (kResidual) units.load_unit(residual + start, unit, operands.residual.value);
  }

  // at(e): the coefficients of element e of the unit.
  template <typename Units, typename Lookup>
  __device__ void apply(const Units& units, int64_t start, int unit, const Lookup& at,
                        const Operands<Units::kElements>& operands,
                        acc_t (&values)[Units::kElements]) const {
    acc_t grad[Units::kElements];
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e) {
      const Coefficients here = at(e);
      grad[e] = pass(operands.grad[e], operands.residual.add_to(here.channel(values[e]), e), relu);
      values[e] = here.channel.k * grad[e] + here.moments(values[e]);
    }
    if constexpr (kResidual) units.store_unit(dresidual + start, unit, grad);
  }

  template <int V>
  __device__ ChannelCoefficients<V> channel_coefficients(int64_t row, int64_t channel) const {
    ChannelCoefficients<V> at;
#pragma unroll
    for (int v = 0; v < V; ++v) at.channel[v] = coefficients(row + v, channel + v);
    return at;
  }

  // offset is -1 for a window without output.
  template <int V, int kElements>
  __device__ void load_output(int64_t offset, PixelOperands<kElements, V>& operands) const {
#pragma unroll
    for (int v = 0; v < V; ++v) operands.grad[v] = 0;
    if (offset < 0) return;
    cuda::load<V>(grad_y + offset, operands.grad);
#pragma unroll
    for (int v = 0; v < V; ++v) operands.grad[v] *= acc_t(1) / kElements;
  }

  template <int V, typename Operands>
  __device__ void load_pixel(int64_t offset, int e, Operands& operands) const {
    if constexpr (kResidual) cuda::load<V>(residual + offset, operands.residual[e].value);
  }

  template <int V, typename Operands>
  __device__ void apply_pixel(int64_t offset, int e, const ChannelCoefficients<V>& at,
                              const Operands& operands, acc_t (&values)[V]) const {
    acc_t grad[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Coefficients& here = at.channel[v];
      grad[v] =
          pass(operands.grad[v], operands.residual[e].add_to(here.channel(values[v]), v), relu);
      values[v] = here.channel.k * grad[v] + here.moments(values[v]);
    }
    if constexpr (kResidual) store<V>(dresidual + offset, grad);
  }
};

}  // namespace

void bn_act_moments_backward(const Activation& shape, const BnAct& fused, const void* grad_y,
                             const double* grad_mean, const double* grad_m2, const void* x,
                             const double* mean, void* dx, void* dresidual, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_variant(shape.type, fused.residual, [&]<typename scalar_t, bool kResidual>() {
    using Gradient = BnActGradient<scalar_t, kResidual>;
    using acc_t = acc_type<scalar_t>;
    const Gradient gradient{row_gradients<acc_t>(grad_mean, grad_m2, mean, shape.size()),
                            static_cast<const acc_t*>(fused.k),
                            static_cast<const acc_t*>(fused.h),
                            static_cast<const scalar_t*>(fused.residual),
                            static_cast<const scalar_t*>(grad_y),
                            static_cast<scalar_t*>(dresidual),
                            fused.relu};
    const scalar_t* in = static_cast<const scalar_t*>(x);
    scalar_t* out = static_cast<scalar_t*>(dx);
    const bool aligned = all_aligned({x, dx, grad_y, fused.residual, dresidual});
    if (!fused.pool && takes_flat<scalar_t>(shape, aligned))
      return launch_flat_gradient(shape, in, out, gradient, on);
    for_units<scalar_t, kResidual>(
        shape, fused.pool, aligned,
        [&](const auto& units) { launch_row_gradient(shape, units, in, out, gradient, on); },
        [&]<int V>(const auto& pixels) {
          launch_pixel_gradient<V>(shape, pixels, in, out, gradient, on);
        });
  });
  check_launch("bn_act_moments_backward");
}

}  // namespace ltdd::cuda
