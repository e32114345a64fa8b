#pragma once

// The gradient of y = pool(act(k x + h + residual)) and of moments of x, as bn_act_moments and
// norm_act want it. Where the ReLU passed is computed again from x, or read (see Beside).
//
//   g = spread(grad_y) where act passes,   dresidual = g
//
// Two layers may have read y, such as the first convolution of a block and its shortcut. Then
// grad_y is the sum of their gradients, rounded to the storage type as torch would store it.
//
//   dx = k g + shift + slope (x - center)

#include "bn_act.h"
#include "moments_gradient.h"

namespace ltdd::cuda {

// Of a row: the part of the gradient that is affine in x, and what x is scaled by.
template <typename acc_t>
struct NormCoefficients {
  AffineInX<acc_t> moments;
  ScaleShift<acc_t> channel;
};

// Scale and offset of each channel, frozen, and the gradients of each row's moments.
template <typename acc_t>
struct FrozenNorms {
  RowGradients<acc_t> moments;
  const acc_t *k, *h;  // [C]

  __device__ NormCoefficients<acc_t> at(int64_t row, int64_t channel) const {
    return {moments.at(row), {k[channel], h[channel]}};
  }
};

// What decides, beside k x + h, whether a gradient passes the ReLU: a residual as it lies in
// memory, or what the forward pass found.
template <typename Raw, Beside kBeside>
struct Gate {
  template <typename acc_t>
  __device__ acc_t let_through(acc_t grad, acc_t before, int, acc_t blocked) const {
    return pass(grad, before, blocked);
  }
};
template <typename Raw>
struct Gate<Raw, Beside::kResidual> {
  Raw raw;
  template <typename acc_t>
  __device__ acc_t let_through(acc_t grad, acc_t before, int i, acc_t blocked) const {
    return pass(grad, before + raw[i], blocked);
  }
};
template <typename Raw>
struct Gate<Raw, Beside::kPassed> {
  unsigned bits;
  template <typename acc_t>
  __device__ acc_t let_through(acc_t grad, acc_t, int i, acc_t) const {
    return (bits >> i & 1u) != 0 ? grad : acc_t(0);
  }
};

// norms.at(row, channel) returns the coefficients of a row.
template <typename scalar_t, typename Norms, Beside kBeside, bool kShared = false>
struct BnActGradient {
  using acc_t = acc_type<scalar_t>;
  using Coefficients = NormCoefficients<acc_t>;
  static constexpr bool kResidual = kBeside == Beside::kResidual;
  static constexpr bool kPassed = kBeside == Beside::kPassed;
  static constexpr int kStreams = 2 + kResidual + kShared;  // a byte of bits is no load to speak of
  static constexpr bool kToOutputs = false;

  Norms norms;
  const scalar_t* residual;
  const uint8_t* passed;
  const scalar_t *grad_y, *grad_shortcut;
  scalar_t* dresidual;
  acc_t blocked;  // see pass

  template <typename Units>
  struct Operands {
    typename Units::template RawGrad<scalar_t> grad;
    Optional<typename Units::template RawGrad<scalar_t>, kShared> shortcut;
    Gate<typename Units::template Raw<scalar_t>, kBeside> gate;
  };
  template <int kElements, int V>
  struct PixelOperands {
    Pack<scalar_t, V> grad;  // of the output of the unit
    Optional<Pack<scalar_t, V>, kShared> shortcut;
    Gate<Pack<scalar_t, V>, kBeside> gate[kElements];
  };

  __device__ Coefficients coefficients(int64_t row, int64_t channel) const {
    return norms.at(row, channel);
  }

  template <typename Units>
  __device__ void load(const Units& units, int64_t start, int64_t output_start, int unit,
                       Operands<Units>& operands) const {
    units.load_output_grad(grad_y + output_start, unit, operands.grad);
    if constexpr (kShared)
      units.load_output_grad(grad_shortcut + output_start, unit, operands.shortcut.raw);
    if constexpr (kResidual) units.load_unit(residual + start, unit, operands.gate.raw);
    if constexpr (kPassed)
      operands.gate.bits = passed[byte_of<scalar_t>(start) + static_cast<unsigned>(unit)];
  }

  // The gradient of an output, from whoever read it.
  template <int V>
  __device__ static Pack<scalar_t, V> total(const Pack<scalar_t, V>& grad,
                                            const Optional<Pack<scalar_t, V>, kShared>& shortcut) {
    if constexpr (!kShared) return grad;
    acc_t sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = shortcut.add_to(grad[v], v);
    Pack<scalar_t, V> rounded;
    rounded.round(sum);
    return rounded;
  }

  // The gradient of what the ReLU is applied to, at element e of a unit.
  template <typename Units>
  __device__ acc_t before_bound(const Coefficients& here, const Operands<Units>& operands, int e,
                                acc_t x) const {
    return bounded<Units>(here, operands.grad, operands, e, x);
  }
  template <typename Units>
  __device__ acc_t bounded(const Coefficients& here,
                           const typename Units::template RawGrad<scalar_t>& incoming,
                           const Operands<Units>& operands, int e, acc_t x) const {
    return operands.gate.let_through(Units::template output_grad<scalar_t>(incoming, e),
                                     here.channel(x), e, blocked);
  }

  // at(e): the coefficients of element e of the unit.
  template <typename Units, typename Lookup>
  __device__ void apply(const Units& units, int64_t start, int unit, const Lookup& at,
                        const Operands<Units>& operands,
                        const typename Units::template Raw<scalar_t>& raw,
                        acc_t (&values)[Units::kElements]) const {
    const auto incoming = total(operands.grad, operands.shortcut);
    acc_t grad[Units::kElements];
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e) {
      const Coefficients here = at(e);
      const acc_t x = raw[e];
      grad[e] = bounded<Units>(here, incoming, operands, e, x);
      values[e] = here.channel.k * grad[e] + here.moments(x);
    }
    if constexpr (kBeside != Beside::kNothing) units.store_unit(dresidual + start, unit, grad);
  }

  // From here on, bytes of pixels count from element `start`, those of outputs from `output_start`.
  __device__ void start_at(int64_t start, int64_t output_start) {
    grad_y += output_start;
    if constexpr (kShared) grad_shortcut += output_start;
    if constexpr (kResidual) residual += start;
    if constexpr (kPassed) passed += byte_of<scalar_t>(start);
    if constexpr (kBeside != Beside::kNothing) dresidual += start;
  }

  // A window that the plane ends inside of has no output.
  template <int V, int kElements>
  __device__ void load_output(bool exists, int64_t offset,
                              PixelOperands<kElements, V>& operands) const {
    if (exists)
      operands.grad = cuda::load<V>(bytes_on(grad_y, offset));
    else
      operands.grad = {};
    if constexpr (kShared) operands.shortcut.raw = cuda::load<V>(bytes_on(grad_shortcut, offset));
  }

  template <int V, typename Operands>
  __device__ void load_pixel(int64_t offset, int e, Operands& operands) const {
    if constexpr (kResidual) operands.gate[e].raw = cuda::load<V>(bytes_on(residual, offset));
    if constexpr (kPassed) operands.gate[e].bits = passed[byte_of<char>(offset)];
  }

  // The same at channel v of element e of a unit of pixels.
  template <int V, int kElements>
  __device__ acc_t before_bound(const Coefficients& here,
                                const PixelOperands<kElements, V>& operands, int e, int v,
                                acc_t x) const {
    return bounded<V>(here, operands.grad, operands, e, v, x);
  }
  template <int V, int kElements>
  __device__ acc_t bounded(const Coefficients& here, const Pack<scalar_t, V>& incoming,
                           const PixelOperands<kElements, V>& operands, int e, int v,
                           acc_t x) const {
    return operands.gate[e].let_through(incoming[v] * (acc_t(1) / kElements), here.channel(x), v,
                                        blocked);
  }

  template <int V, int kElements>
  __device__ void apply_pixel(int64_t offset, int e, const Coefficients* at,
                              const PixelOperands<kElements, V>& operands,
                              const Pack<scalar_t, V>& raw, acc_t (&values)[V]) const {
    const Pack<scalar_t, V> incoming = total(operands.grad, operands.shortcut);
    acc_t grad[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Coefficients here = at[v];
      const acc_t x = raw[v];
      grad[v] = bounded<V>(here, incoming, operands, e, v, x);
      values[v] = here.channel.k * grad[v] + here.moments(x);
    }
    if constexpr (kBeside != Beside::kNothing) store<V>(bytes_on(dresidual, offset), grad);
  }
};

}  // namespace ltdd::cuda
