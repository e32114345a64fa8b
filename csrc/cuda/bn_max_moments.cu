// bn_act_moments with the max pool of a network's stem, both ways, in NHWC and by whole vectors.
//
//   y[i, j] = max(0, max over the window of k x + h),   mean, m2 of x as in row_moments
//   dx = k g + grad_mean / S + 2 grad_m2 (x - mean),   g = sum of grad_y where x was the maximum
//
// Windows are 3x3 with stride 2 and padding 1, so their 2x2 pixels in the middle and to the lower
// right are theirs alone: these are the unit of a thread (MaxPixels), which reads five more around
// them, and for the gradient three more outputs; they come from the cache. Of equal values the
// first is the maximum, a NaN is one, as in torch. Traffic: reads x and writes y, a quarter of x,
// and a byte of position for each of its elements where there will be a gradient; backward reads
// these two and x and writes dx. No atomics: each x sums its windows in one order.

#include "bn_act_gradient.h"

namespace ltdd::cuda {
namespace {

// Positions in a window, line by line; kNowhere where the ReLU let nothing pass.
constexpr uint8_t kNowhere = 9;

template <int V>
struct alignas(V) Positions {
  uint8_t of[V];
};

template <typename scalar_t, bool kKeeps>
struct MaxEpilogue : ChannelScales<acc_type<scalar_t>> {
  using acc_t = acc_type<scalar_t>;
  static constexpr bool kWrites = true;
  static constexpr int kStreams = 1;

  const scalar_t* x;
  scalar_t* y;
  uint8_t* position;  // like y

  template <int kElements, int V>
  struct PixelOperands {
    Pack<scalar_t, V> around[MaxPixels::kAround];
    unsigned exists;  // of the unit, then around it
  };

  __device__ void start_at(int64_t start, int64_t output_start) {
    x += start;
    y += output_start;
    position += output_start;
  }

  template <int V, typename Operands>
  __device__ void load_pixel(int64_t, int, Operands&) const {}

  template <int V, typename Operands>
  __device__ void load_around(const MaxPixels& pixels, const PixelPosition& at, int pitch,
                              Operands& operands) const {
    operands.exists = at.mask | at.around << MaxPixels::kElements;
#pragma unroll
    for (int a = 0; a < MaxPixels::kAround; ++a)
      if (at.around >> a & 1u)
        operands.around[a] =
            cuda::load<V>(bytes_on(x, wide_product(at.first + pixels.step_around(a), pitch)));
  }

  template <int V, int kElements>
  __device__ void write_pixel(int64_t offset, const ScalesHere<V, acc_t>& at,
                              const PixelOperands<kElements, V>& operands,
                              const acc_t (&values)[kElements][V]) const {
    acc_t best[V] = {};  // what the ReLU leaves
    Positions<V> where;
#pragma unroll
    for (int v = 0; v < V; ++v) where.of[v] = kNowhere;
#pragma unroll
    for (int p = 0; p < 9; ++p) {
      const int pixel = MaxPixels::at_place(p);
      if ((operands.exists >> pixel & 1u) == 0) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const acc_t before = at.channel[v](
            pixel < kElements ? values[pixel < kElements ? pixel : 0][v]
                              : operands.around[pixel < kElements ? 0 : pixel - kElements][v]);
        if (before > best[v] || before != before) {
          best[v] = before;
          where.of[v] = static_cast<uint8_t>(p);
        }
      }
    }
    store<V>(bytes_on(y, offset), best);
    if constexpr (kKeeps)
      *reinterpret_cast<Positions<V>*>(position + offset / sizeof(scalar_t)) = where;
  }
};

template <typename scalar_t>
struct MaxGradient {
  using acc_t = acc_type<scalar_t>;
  using Coefficients = NormCoefficients<acc_t>;
  static constexpr int kStreams = 2;
  static constexpr bool kToOutputs = false;
  static constexpr int kWindows = MaxPixels::kWindows;

  FrozenNorms<acc_t> norms;
  const scalar_t* grad_y;
  const uint8_t* position;

  template <int kElements, int V>
  struct PixelOperands {
    Pack<scalar_t, V> grad[kWindows];
    Positions<V> where[kWindows];
  };

  __device__ Coefficients coefficients(int64_t row, int64_t channel) const {
    return norms.at(row, channel);
  }

  __device__ void start_at(int64_t, int64_t output_start) {
    grad_y += output_start;
    position += output_start;
  }

  template <int V, typename Operands>
  __device__ void load_output(bool, int64_t offset, Operands& operands) const {
    load_window<V>(0, offset, operands);
  }
  template <int V, typename Operands>
  __device__ void load_pixel(int64_t, int, Operands&) const {}

  template <int V, typename Operands>
  __device__ void load_window(int w, int64_t offset, Operands& operands) const {
    operands.grad[w] = cuda::load<V>(bytes_on(grad_y, offset));
    operands.where[w] =
        *reinterpret_cast<const Positions<V>*>(position + offset / sizeof(scalar_t));
  }

  template <int V, typename Operands>
  __device__ void load_around(const MaxPixels& pixels, const PixelPosition& at, int pitch,
                              Operands& operands) const {
#pragma unroll
    for (int w = 1; w < kWindows; ++w) {
      if (pixels.has_window(at.output, w)) {
        load_window<V>(w, wide_product(at.output + pixels.step_to_window(w), pitch), operands);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) operands.where[w].of[v] = kNowhere;
      }
    }
  }

  template <int V, int kElements>
  __device__ void apply_pixel(int64_t, int e, const Coefficients* at,
                              const PixelOperands<kElements, V>& operands,
                              const Pack<scalar_t, V>& raw, acc_t (&values)[V]) const {
    acc_t grad[V] = {};
#pragma unroll
    for (int w = 0; w < kWindows; ++w) {
      const int line = e / 2 + 1 - w / 2 * 2, column = e % 2 + 1 - w % 2 * 2;
      if (line < 0 || column < 0) continue;  // not in this window
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (operands.where[w].of[v] == 3 * line + column) grad[v] += operands.grad[w][v];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = at[v].channel.k * grad[v] + at[v].moments(raw[v]);
  }
};

// Of a thread: with the nine pixels of a window more would not fit in registers.
constexpr int kChannels = 4;

// Calls body.template operator()<scalar_t, V>().
template <typename Body>
void for_vectors_of(Type type, const Body& body) {
  for_type(type, [&]<typename scalar_t>() {
    if constexpr (!std::is_same_v<scalar_t, double>)
      body.template operator()<scalar_t, kChannels>();
  });
}

}  // namespace

bool takes_max_pool(const Activation& shape) {
  bool takes = false;
  for_vectors_of(shape.type, [&]<typename scalar_t, int V>() {
    takes = shape.channels_last && shape.channels % V == 0 && shape.rows() > 0 && shape.size() > 0;
  });
  return takes;
}

size_t bn_max_moments_scratch_bytes(const Activation& shape) {
  return scratch_bytes<MaxPixels>(shape, MaxEpilogue<float, true>::kStreams);
}

void bn_max_moments(const Activation& shape, const BnAct& fused, const void* x, void* y,
                    double* mean, double* m2, uint8_t* position, void* scratch, Stream stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_vectors_of(shape.type, [&]<typename scalar_t, int V>() {
    using acc_t = acc_type<scalar_t>;
    const auto start = [&]<bool kKeeps>() {
      const scalar_t* in = static_cast<const scalar_t*>(x);
      const MaxEpilogue<scalar_t, kKeeps> epilogue{
          {static_cast<const acc_t*>(fused.k), static_cast<const acc_t*>(fused.h)},
          in,
          static_cast<scalar_t*>(y),
          position};
      launch_pixels<V>(shape, MaxPixels(plane_of(shape)), in, mean, m2, scratch, epilogue, on);
    };
    if (position != nullptr)
      start.template operator()<true>();
    else
      start.template operator()<false>();
  });
  check_launch("bn_act_moments");
}

void bn_max_moments_backward(const Activation& shape, const BnAct& fused, const uint8_t* position,
                             const void* grad_y, const double* grad_mean, const double* grad_m2,
                             const void* x, const double* mean, void* dx, Stream stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_vectors_of(shape.type, [&]<typename scalar_t, int V>() {
    using acc_t = acc_type<scalar_t>;
    const MaxGradient<scalar_t> gradient{
        {row_gradients<acc_t>(grad_mean, grad_m2, mean, shape.size()),
         static_cast<const acc_t*>(fused.k), static_cast<const acc_t*>(fused.h)},
        static_cast<const scalar_t*>(grad_y),
        position};
    launch_pixel_map<V>(shape, MaxPixels(plane_of(shape)), static_cast<const scalar_t*>(x),
                        static_cast<scalar_t*>(dx), gradient, on);
  });
  check_launch("bn_act_moments_backward");
}

}  // namespace ltdd::cuda
