// bn_act_moments_backward: the gradient of y and of the moments, back to x and to the residual.
//
//   g = spread(grad_y) where act passes,   dresidual = g
//   dx = k g + grad_mean / S + 2 grad_m2 (x - mean)
//
// grad_y may come in two parts, grad_y and grad_shortcut, of two layers that read y. Where the ReLU
// passed is computed again from x, or read as the forward pass kept it behind a residual. Traffic:
// reads x, grad_y (both of them, and a sixteenth of x of bits), writes dx (and dresidual). Without
// those bits it reads the residual too.

#include "bn_act_gradient.h"

namespace ltdd::cuda {
namespace {

struct Arguments {
  const uint8_t* passed;
  const void *grad_y, *grad_shortcut;
  const double *grad_mean, *grad_m2;
  const void* x;
  const double* mean;
  void *dx, *dresidual;
};

template <bool kShared>
void launch_backward(const Activation& shape, const BnAct& fused, const Arguments& given,
                     cudaStream_t on) {
  for_variant(shape.type, fused.residual, given.passed, [&]<typename scalar_t, Beside kBeside>() {
    using acc_t = acc_type<scalar_t>;
    const BnActGradient<scalar_t, FrozenNorms<acc_t>, kBeside, kShared> gradient{
        {row_gradients<acc_t>(given.grad_mean, given.grad_m2, given.mean, shape.size()),
         static_cast<const acc_t*>(fused.k), static_cast<const acc_t*>(fused.h)},
        static_cast<const scalar_t*>(fused.residual),
        given.passed,
        static_cast<const scalar_t*>(given.grad_y),
        static_cast<const scalar_t*>(given.grad_shortcut),
        static_cast<scalar_t*>(given.dresidual),
        blocked_by<acc_t>(fused.relu)};
    const scalar_t* in = static_cast<const scalar_t*>(given.x);
    scalar_t* out = static_cast<scalar_t*>(given.dx);
    const bool aligned = all_aligned(
        {given.x, given.dx, given.grad_y, given.grad_shortcut, fused.residual, given.dresidual});
    if (!fused.pool && takes_flat<scalar_t>(shape, aligned))
      return launch_flat_map(shape, in, out, gradient, on);
    const auto on_rows = [&](const auto& units) {
      launch_row_map(shape, units, in, out, gradient, on);
    };
    const auto on_pixels = [&]<int V>(const auto& pixels) {
      launch_pixel_map<V>(shape, pixels, in, out, gradient, on);
    };
    if constexpr (kBeside == Beside::kPassed)
      for_unpooled<kVector<scalar_t>>(shape, on_rows, on_pixels);
    else
      for_units<scalar_t, kBeside == Beside::kResidual, !kShared>(shape, fused.pool, aligned,
                                                                  on_rows, on_pixels);
  });
}

}  // namespace

void bn_act_moments_backward(const Activation& shape, const BnAct& fused, const uint8_t* passed,
                             const void* grad_y, const void* grad_shortcut, const double* grad_mean,
                             const double* grad_m2, const void* x, const double* mean, void* dx,
                             void* dresidual, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const Arguments given{passed, grad_y, grad_shortcut, grad_mean, grad_m2, x, mean, dx, dresidual};
  if (grad_shortcut != nullptr)
    launch_backward<true>(shape, fused, given, on);
  else
    launch_backward<false>(shape, fused, given, on);
  check_launch("bn_act_moments_backward");
}

}  // namespace ltdd::cuda
