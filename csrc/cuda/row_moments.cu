// row_moments: mean and m2 of every (image, channel), and the gradient of both.
//
//   mean[n,c] = sum_s x / S,   m2[n,c] = sum_s (x - mean)^2
//   dx = grad_mean / S + 2 grad_m2 (x - mean)
//
// Layouts: NCHW by rows.h or flat.h, NHWC by pixels.h; 16-byte vectors where shape and pointers
// allow, single elements otherwise (float64 always: it is there for checks, not for speed).
// Traffic: forward reads x once, backward reads x and writes dx. Deterministic: no atomics, and the
// grid depends on the shape alone.

#include "launch_moments.h"
#include "moments_gradient.h"

namespace ltdd::cuda {
namespace {

// Only the moments are wanted of x.
struct NoEpilogue {
  static constexpr bool kWrites = false;
  static constexpr int kStreams = 1;
  struct Coefficients {};
  template <typename Units>
  struct Operands {};
  template <int kElements, int V>
  struct PixelOperands {};

  __device__ Coefficients coefficients(int64_t) const { return {}; }
  template <typename Units>
  __device__ void load(const Units&, int64_t, int, Operands<Units>&) const {}

  __device__ void start_at(int64_t, int64_t) {}
  template <int V>
  __device__ Coefficients channel_coefficients(int64_t) const {
    return {};
  }
  template <int V, typename Operands>
  __device__ void load_pixel(int64_t, int, Operands&) const {}
};

template <typename scalar_t>
struct MomentsGradient : NothingBesidesX {
  using acc_t = acc_type<scalar_t>;
  using Coefficients = AffineInX<acc_t>;
  static constexpr int kStreams = 1;
  static constexpr bool kToOutputs = false;
  RowGradients<acc_t> moments;

  __device__ Coefficients coefficients(int64_t row, int64_t) const { return moments.at(row); }

  template <typename Units, typename Lookup>
  __device__ void apply(const Units&, int64_t, int, const Lookup& at, const Operands<Units>&,
                        const typename Units::template Raw<scalar_t>& raw,
                        acc_t (&values)[Units::kElements]) const {
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e) values[e] = at(e)(raw[e]);
  }

  template <int V, typename Operands>
  __device__ void apply_pixel(int64_t, int, const Coefficients* at, const Operands&,
                              const Pack<scalar_t, V>& raw, acc_t (&values)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = at[v](raw[v]);
  }
};

}  // namespace

size_t row_moments_scratch_bytes(const Activation& shape) {
  return scratch_bytes<LinearPixels>(shape, NoEpilogue::kStreams);
}

void row_moments(const Activation& shape, const void* x, double* mean, double* m2, void* scratch,
                 Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_type(shape.type, [&]<typename scalar_t>() {
    const scalar_t* in = static_cast<const scalar_t*>(x);
    const int64_t run = shape.channels_last ? shape.channels : shape.size();
    const bool aligned = is_aligned(x, kVectorBytes);
    if (takes_flat<scalar_t>(shape, aligned))
      return launch_flat(shape, in, mean, m2, NoEpilogue{}, on);
    for_vector<scalar_t>(aligned && run % kVector<scalar_t> == 0, [&]<int V>() {
      if (shape.channels_last)
        launch_pixels<V>(shape, LinearPixels(plane_of(shape)), in, mean, m2, scratch, NoEpilogue{},
                         on);
      else
        launch_rows(shape, LinearUnits<V>(plane_of(shape)), in, mean, m2, NoEpilogue{}, on);
    });
  });
  check_launch("row_moments");
}

void row_moments_backward(const Activation& shape, const double* grad_mean, const double* grad_m2,
                          const void* x, const double* mean, void* dx, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_type(shape.type, [&]<typename scalar_t>() {
    const MomentsGradient<scalar_t> gradient{
        {}, row_gradients<acc_type<scalar_t>>(grad_mean, grad_m2, mean, shape.size())};
    const scalar_t* in = static_cast<const scalar_t*>(x);
    scalar_t* out = static_cast<scalar_t*>(dx);
    const int64_t run = shape.channels_last ? shape.channels : shape.size();
    const bool aligned = is_aligned(x, kVectorBytes) && is_aligned(dx, kVectorBytes);
    if (takes_flat<scalar_t>(shape, aligned)) return launch_flat_map(shape, in, out, gradient, on);
    for_vector<scalar_t>(aligned && run % kVector<scalar_t> == 0, [&]<int V>() {
      if (shape.channels_last)
        launch_pixel_map<V>(shape, LinearPixels(plane_of(shape)), in, out, gradient, on);
      else
        launch_row_map(shape, LinearUnits<V>(plane_of(shape)), in, out, gradient, on);
    });
  });
  check_launch("row_moments_backward");
}

}  // namespace ltdd::cuda
