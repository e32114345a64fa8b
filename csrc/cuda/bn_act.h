#pragma once

// What the two directions of bn_act_moments share: the pointwise maths and the choice of units.

#include <limits>

#include "launch_moments.h"

namespace ltdd::cuda {

// The pointwise part: what comes before pooling. A NaN stays NaN.
template <typename acc_t>
struct ScaleShift {
  acc_t k, h;

  __device__ acc_t operator()(acc_t x) const { return k * x + h; }
};

// k and h of a thread's own channels.
template <int V, typename acc_t>
struct ScalesHere {
  ScaleShift<acc_t> channel[V];
};

template <typename acc_t>
struct ChannelScales {
  using Coefficients = ScaleShift<acc_t>;

  const acc_t *k, *h;  // [C]

  __device__ Coefficients coefficients(int64_t channel) const { return {k[channel], h[channel]}; }

  template <int V>
  __device__ ScalesHere<V, acc_t> channel_coefficients(int64_t channel) const {
    ScalesHere<V, acc_t> at;
#pragma unroll
    for (int v = 0; v < V; ++v) at.channel[v] = coefficients(channel + v);
    return at;
  }
};

// The ReLU as a bound, so that no kernel asks whether there is one: the output is at least `least`,
// and the gradient passes where the input is not at most `blocked`. Without a ReLU these are minus
// infinity and NaN. A NaN stays NaN and passes.
template <typename acc_t>
__device__ __forceinline__ acc_t activate(acc_t before, acc_t least) {
  return before <= least ? least : before;
}

template <typename acc_t>
acc_t least_of(bool relu) {
  return relu ? acc_t(0) : -std::numeric_limits<acc_t>::infinity();
}

template <typename acc_t>
acc_t blocked_by(bool relu) {
  return relu ? acc_t(0) : std::numeric_limits<acc_t>::quiet_NaN();
}

// From sm_80 on one instruction does the same, NaN included, for one number or for two of 16 bits.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ float activate(float before, float least) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(before), "f"(least));
  return result;
}

inline constexpr bool kActivatesPairs = true;
template <typename scalar_t>
__device__ __forceinline__ uint32_t activate_pair(uint32_t before, uint32_t least) {
  uint32_t result;
  if constexpr (std::is_same_v<scalar_t, __half>)
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(before), "r"(least));
  else
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(before), "r"(least));
  return result;
}
#else
inline constexpr bool kActivatesPairs = false;
template <typename scalar_t>
__device__ uint32_t activate_pair(uint32_t before, uint32_t least);
#endif

// Stores V numbers after the bound. Pairs are rounded first: the same numbers.
template <int V, typename scalar_t>
__device__ __forceinline__ void store_activated(scalar_t* target,
                                                const acc_type<scalar_t> (&before)[V],
                                                acc_type<scalar_t> least) {
  if constexpr (kActivatesPairs && sizeof(scalar_t) == 2 && V % 2 == 0) {
    const uint32_t bound = round_pair<scalar_t>(least, least);
    Pack<scalar_t, V> pack;
    pack.round(before);
#pragma unroll
    for (int i = 0; i < V / 2; ++i) pack.pair[i] = activate_pair<scalar_t>(pack.pair[i], bound);
    store<V>(target, pack);
  } else {
    acc_type<scalar_t> values[V];
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = activate(before[i], least);
    store<V>(target, values);
  }
}

template <typename acc_t>
__device__ __forceinline__ acc_t pass(acc_t grad, acc_t before, acc_t blocked) {
  return before <= blocked ? acc_t(0) : grad;
}

// What an element is added to before the ReLU, if anything. Where a gradient will be asked for, the
// forward pass keeps which elements passed, a bit each, and the backward pass reads these in place
// of the residual: a byte for each vector of x, in the order of x.
enum class Beside { kNothing, kResidual, kPassed };

// Where the bits of the vector lie that begins with this element; where offsets count bytes,
// scalar_t is char. Unsigned, so that it is a shift: a register less, for want of which sm_120
// would spill.
template <typename scalar_t>
__device__ __forceinline__ int64_t byte_of(int64_t element) {
  return static_cast<int64_t>(static_cast<uint64_t>(element) / kVector<scalar_t>);
}

// Something to add to each element, as it lies in memory, or nothing at all.
template <typename Raw, bool kPresent>
struct Optional {
  Raw raw;
  template <typename acc_t>
  __device__ acc_t add_to(acc_t sum, int i) const {
    return sum + raw[i];
  }
};
template <typename Raw>
struct Optional<Raw, false> {
  template <typename acc_t>
  __device__ acc_t add_to(acc_t sum, int) const {
    return sum;
  }
};

// Calls rows(units) or pixels.template operator()<V>(pixels) for the layout, without pooling.
template <int V, typename Rows, typename ByPixels>
void for_unpooled(const Activation& shape, const Rows& rows, const ByPixels& pixels) {
  if (shape.channels_last)
    pixels.template operator()<V>(LinearPixels(plane_of(shape)));
  else
    rows(LinearUnits<V>(plane_of(shape)));
}

// The same for layout, pooling and the widest vectors that shape and pointers allow. No network
// pools right behind a residual: that goes element by element. Without kPools there is no pool.
template <typename scalar_t, bool kResidual, bool kPools = true, typename Rows, typename ByPixels>
void for_units(const Activation& shape, bool pool, bool aligned, const Rows& rows,
               const ByPixels& pixels) {
  const Plane plane = plane_of(shape);
  constexpr int kWide = kVector<scalar_t>;
  const int64_t run = shape.channels_last ? shape.channels : pool ? shape.width : shape.size();
  const bool even = shape.channels_last || !pool || shape.height % 2 == 0;
  for_vector<scalar_t>(aligned && even && run % kWide == 0, [&]<int V>() {
    constexpr int kPoolVector = kResidual ? 1 : V;
    if constexpr (kPools) {
      if (shape.channels_last && pool)
        return pixels.template operator()<kPoolVector>(PooledPixels(plane));
      if (pool) return rows(PooledUnits<std::max(kPoolVector, 2), kPoolVector == 1>(plane));
    }
    for_unpooled<V>(shape, rows, pixels);
  });
}

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* pointer) { return is_aligned(pointer, kVectorBytes); });
}

// Calls body.template operator()<scalar_t, kBeside>().
template <typename Body>
void for_variant(Type type, const void* residual, const void* passed, const Body& body) {
  for_type(type, [&]<typename scalar_t>() {
    if constexpr (!std::is_same_v<scalar_t, double>)
      if (passed != nullptr) return body.template operator()<scalar_t, Beside::kPassed>();
    if (residual != nullptr)
      body.template operator()<scalar_t, Beside::kResidual>();
    else
      body.template operator()<scalar_t, Beside::kNothing>();
  });
}

}  // namespace ltdd::cuda
