#pragma once

// What the two directions of bn_act_moments share: the pointwise maths and the choice of units.

#include "launch_moments.h"

namespace ltdd::cuda {

// The pointwise part: what comes before pooling. A NaN stays NaN.
template <typename acc_t>
struct ScaleShift {
  acc_t k, h;

  __device__ acc_t operator()(acc_t x) const { return k * x + h; }
};

template <typename acc_t>
__device__ __forceinline__ acc_t activate(acc_t before, bool relu) {
  return relu && before < acc_t(0) ? acc_t(0) : before;
}

template <typename acc_t>
__device__ __forceinline__ acc_t pass(acc_t grad, acc_t before, bool relu) {
  return relu && before <= acc_t(0) ? acc_t(0) : grad;
}

// The residual of each element of a unit, or nothing at all.
template <typename acc_t, int kCount, bool kPresent>
struct Residual {
  acc_t value[kCount];
  __device__ acc_t add_to(acc_t sum, int i) const { return sum + value[i]; }
};
template <typename acc_t, int kCount>
struct Residual<acc_t, kCount, false> {
  __device__ acc_t add_to(acc_t sum, int) const { return sum; }
};

// Calls rows(units) or pixels.template operator()<V>(pixels) for layout, pooling and the widest
// vectors that shape and pointers allow. No network pools right behind a residual: that goes
// element by element. Windows of NHWC take four vectors each, so half vectors must do for 16-bit
// types.
template <typename scalar_t, bool kResidual, typename Rows, typename ByPixels>
void for_units(const Activation& shape, bool pool, bool aligned, const Rows& rows,
               const ByPixels& pixels) {
  const Plane plane = plane_of(shape);
  constexpr int kWide = kVector<scalar_t>;
  const int64_t run = shape.channels_last ? shape.channels : pool ? shape.width : shape.size();
  const bool even = shape.channels_last || !pool || shape.height % 2 == 0;
  for_vector<scalar_t>(aligned && even && run % kWide == 0, [&]<int V>() {
    constexpr int kPoolVector = kResidual ? 1 : V;
    if (shape.channels_last && pool)
      pixels.template operator()<std::min(kPoolVector, 4)>(PooledPixels(plane));
    else if (shape.channels_last)
      pixels.template operator()<V>(LinearPixels(plane));
    else if (pool)
      rows(PooledUnits<std::max(kPoolVector, 2), kPoolVector == 1>(plane));
    else
      rows(LinearUnits<V>(plane));
  });
}

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* pointer) { return is_aligned(pointer, kVectorBytes); });
}

// Calls body.template operator()<scalar_t, kResidual>().
template <typename Body>
void for_variant(Type type, const void* residual, const Body& body) {
  for_type(type, [&]<typename scalar_t>() {
    if (residual != nullptr)
      body.template operator()<scalar_t, true>();
    else
      body.template operator()<scalar_t, false>();
  });
}

}  // namespace ltdd::cuda
