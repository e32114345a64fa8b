// row_moments: mean and m2 of every (image, channel), and the gradient of both.
//
//   mean[n,c] = sum_s x / S,   m2[n,c] = sum_s (x - mean)^2
//   dx = grad_mean / S + 2 grad_m2 (x - mean)
//
// Layouts: NCHW by rows.h, NHWC by pixels.h; 16-byte vectors where shape and pointers allow, single
// elements otherwise (float64 always: it is there for checks, not for speed).
// Traffic: forward reads x once, backward reads x and writes dx. Deterministic: no atomics, and the
// grid depends on the shape alone.

#include "launch_moments.h"

namespace ltdd::cuda {
namespace {

// Only the moments are wanted of x.
struct NoEpilogue {
  static constexpr bool kWrites = false;
  struct Coefficients {};
  template <int kElements>
  struct Operands {};
  template <int kElements, int V>
  struct PixelOperands {};

  __device__ Coefficients coefficients(int) const { return {}; }
  template <typename Units>
  __device__ void load(const Units&, int64_t, int, Operands<Units::kElements>&) const {}

  template <int V>
  __device__ Coefficients channel_coefficients(int64_t) const {
    return {};
  }
  template <int V, typename Operands>
  __device__ void load_pixel(int64_t, int, Operands&) const {}
};

template <typename acc_t>
struct MomentsGradient {
  const acc_t *grad_mean, *grad_m2, *mean;  // (N, C)
  acc_t inverse_size;

  struct Coefficients {
    acc_t shift, slope, mean;
  };
  template <int V>
  struct ChannelCoefficients {
    acc_t shift[V], slope[V], mean[V];
  };
  template <int kElements>
  struct Operands {};
  template <int kElements, int V>
  struct PixelOperands {};

  __device__ Coefficients coefficients(int64_t row, int) const {
    return {grad_mean[row] * inverse_size, 2 * grad_m2[row], mean[row]};
  }

  template <typename Units>
  __device__ void load(const Units&, int64_t, int64_t, int, Operands<Units::kElements>&) const {}

  template <typename Units>
  __device__ void apply(const Units&, int64_t, int, const Coefficients& at,
                        const Operands<Units::kElements>&,
                        acc_t (&values)[Units::kElements]) const {
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e)
      values[e] = at.shift + at.slope * (values[e] - at.mean);
  }

  template <int V>
  __device__ ChannelCoefficients<V> channel_coefficients(int64_t row, int64_t) const {
    ChannelCoefficients<V> at;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      at.shift[v] = grad_mean[row + v] * inverse_size;
      at.slope[v] = 2 * grad_m2[row + v];
      at.mean[v] = mean[row + v];
    }
    return at;
  }

  template <int V, typename Operands>
  __device__ void load_output(int64_t, Operands&) const {}
  template <int V, typename Operands>
  __device__ void load_pixel(int64_t, int, Operands&) const {}

  template <int V, typename Operands>
  __device__ void apply_pixel(int64_t, int, const ChannelCoefficients<V>& at, const Operands&,
                              acc_t (&values)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v)
      values[v] = at.shift[v] + at.slope[v] * (values[v] - at.mean[v]);
  }
};

// Calls body.template operator()<V>() with V the widest vector that fits shape and pointers.
template <typename scalar_t, typename Body>
void for_vector(int64_t run, bool aligned, const Body& body) {
  constexpr int kWide = std::is_same_v<scalar_t, double> ? 1 : kVector<scalar_t>;
  if (kWide > 1 && aligned && run % kWide == 0) return body.template operator()<kWide>();
  return body.template operator()<1>();
}

}  // namespace

size_t moments_scratch_bytes(const Activation& shape, bool pool) {
  if (!shape.channels_last || shape.rows() == 0 || shape.size() == 0) return 0;
  size_t most = 0;
  for_type(shape.type, [&]<typename scalar_t>() {
    const auto need = [&]<typename Pixels>(const Pixels& pixels) {
      for (const int vector : {1, kVector<scalar_t>}) {
        const PixelGrid grid =
            plan_pixels(shape, pixels.count, vector, tile_units<Pixels>(vector)).grid;
        if (grid.splits > 1)
          most = std::max(most, sizeof(acc_type<scalar_t>) * size_t(grid.splits) *
                                    (2 * size_t(shape.rows()) + 1));
      }
    };
    if (pool)
      need(PooledPixels(plane_of(shape)));
    else
      need(LinearPixels(plane_of(shape)));
  });
  return most;
}

void row_moments(const Activation& shape, const void* x, void* mean, void* m2, void* scratch,
                 Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_type(shape.type, [&]<typename scalar_t>() {
    const scalar_t* in = static_cast<const scalar_t*>(x);
    const int64_t run = shape.channels_last ? shape.channels : shape.size();
    for_vector<scalar_t>(run, is_aligned(x, kVectorBytes), [&]<int V>() {
      if (shape.channels_last)
        launch_pixels<V>(shape, LinearPixels(plane_of(shape)), in, mean, m2, scratch,
                         NoEpilogue{}, on);
      else
        launch_rows(shape, LinearUnits<V>(plane_of(shape)), in, mean, m2, NoEpilogue{}, on);
    });
  });
  check_launch("row_moments");
}

void row_moments_backward(const Activation& shape, const void* grad_mean, const void* grad_m2,
                          const void* x, const void* mean, void* dx, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_type(shape.type, [&]<typename scalar_t>() {
    using acc_t = acc_type<scalar_t>;
    const MomentsGradient<acc_t> gradient{
        static_cast<const acc_t*>(grad_mean), static_cast<const acc_t*>(grad_m2),
        static_cast<const acc_t*>(mean), acc_t(1) / static_cast<acc_t>(shape.size())};
    const scalar_t* in = static_cast<const scalar_t*>(x);
    scalar_t* out = static_cast<scalar_t*>(dx);
    const int64_t run = shape.channels_last ? shape.channels : shape.size();
    const bool aligned = is_aligned(x, kVectorBytes) && is_aligned(dx, kVectorBytes);
    for_vector<scalar_t>(run, aligned, [&]<int V>() {
      if (shape.channels_last)
        launch_pixel_gradient<V>(shape, LinearPixels(plane_of(shape)), in, out, gradient, on);
      else
        launch_row_gradient(shape, LinearUnits<V>(plane_of(shape)), in, out, gradient, on);
    });
  });
  check_launch("row_moments_backward");
}

}  // namespace ltdd::cuda
