// bn_act_moments_backward: the gradient of y and of the moments, back to x and to the residual.
//
//   g = spread(grad_y) where act passes,   dresidual = g
//   dx = k g + grad_mean / S + 2 grad_m2 (x - mean)
//
// The mask of the ReLU is computed again from x, so nothing but x (and the residual) is kept
// between the passes. Traffic: reads x, grad_y (and residual), writes dx (and dresidual).

#include <limits>

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
  acc_t blocked;  // see pass

  struct Coefficients {
    AffineInX<acc_t> moments;
    ScaleShift<acc_t> channel;
  };
  template <typename Units>
  struct Operands {
    typename Units::template RawGrad<scalar_t> grad;
    Residual<typename Units::template Raw<scalar_t>, kResidual> residual;
  };
  template <int kElements, int V>
  struct PixelOperands {
    Pack<scalar_t, V> grad;  // of the output of the unit
    Residual<Pack<scalar_t, V>, kResidual> residual[kElements];
  };

  __device__ Coefficients coefficients(int64_t row, int64_t channel) const {
    return {moments.at(row), {k[channel], h[channel]}};
  }

  template <typename Units>
  __device__ void load(const Units& units, int64_t start, int64_t output_start, int unit,
                       Operands<Units>& operands) const {
    units.load_output_grad(grad_y + output_start, unit, operands.grad);
    if constexpr (kResidual) units.load_unit(residual + start, unit, operands.residual.raw);
  }

  // at(e): the coefficients of element e of the unit.
  template <typename Units, typename Lookup>
  __device__ void apply(const Units& units, int64_t start, int unit, const Lookup& at,
                        const Operands<Units>& operands,
                        const typename Units::template Raw<scalar_t>& raw,
                        acc_t (&values)[Units::kElements]) const {
    acc_t grad[Units::kElements];
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e) {
      const Coefficients here = at(e);
      const acc_t x = raw[e];
      grad[e] = pass(Units::template output_grad<scalar_t>(operands.grad, e),
                     operands.residual.add_to(here.channel(x), e), blocked);
      values[e] = here.channel.k * grad[e] + here.moments(x);
    }
    if constexpr (kResidual) units.store_unit(dresidual + start, unit, grad);
  }

  // From here on, bytes of pixels count from element `start`, those of outputs from `output_start`.
  __device__ void start_at(int64_t start, int64_t output_start) {
    grad_y += output_start;
    if constexpr (kResidual) {
      residual += start;
      dresidual += start;
    }
  }

  // A window that the plane ends inside of has no output.
  template <int V, int kElements>
  __device__ void load_output(bool exists, int64_t offset,
                              PixelOperands<kElements, V>& operands) const {
    if (exists)
      operands.grad = cuda::load<V>(bytes_on(grad_y, offset));
    else
      operands.grad = {};
  }

  template <int V, typename Operands>
  __device__ void load_pixel(int64_t offset, int e, Operands& operands) const {
    if constexpr (kResidual) operands.residual[e].raw = cuda::load<V>(bytes_on(residual, offset));
  }

  template <int V, int kElements>
  __device__ void apply_pixel(int64_t offset, int e, const Coefficients* at,
                              const PixelOperands<kElements, V>& operands,
                              const Pack<scalar_t, V>& raw, acc_t (&values)[V]) const {
    acc_t grad[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Coefficients here = at[v];
      const acc_t x = raw[v];
      grad[v] = pass(operands.grad[v] * (acc_t(1) / kElements),
                     operands.residual[e].add_to(here.channel(x), v), blocked);
      values[v] = here.channel.k * grad[v] + here.moments(x);
    }
    if constexpr (kResidual) store<V>(bytes_on(dresidual, offset), grad);
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
                            fused.relu ? acc_t(0) : std::numeric_limits<acc_t>::quiet_NaN()};
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
