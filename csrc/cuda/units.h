#pragma once

// How the plane of one row (one image, one channel: S = H*W numbers) is cut into units, the pieces
// that a thread loads at once, and where the output of a unit lies. kElements numbers (per channel)
// make a unit, and kLoads memory instructions fetch it.
//
// LinearUnits and LinearPixels serve operators without pooling, PooledUnits and PooledPixels those
// with a 2x2 average pool of stride 2: there a unit is made of whole windows, so a thread that has
// loaded a unit has all it needs for its outputs. Pooling rounds down as torch does: in an odd
// plane the last row or column belongs to windows without output, but it is still data.

#include "vector.h"

namespace ltdd::cuda {

// H x W of one row; a plain run of S numbers is 1 x S.
struct Plane {
  int height, width;

  __host__ __device__ int64_t size() const { return int64_t(height) * width; }
};

// NCHW: V neighbours of the row.
template <int V>
struct LinearUnits {
  static constexpr int kElements = V;
  static constexpr int kLoads = 1;
  static constexpr bool kPartial = false;

  int count;
  int64_t size;

  __host__ __device__ explicit LinearUnits(Plane plane)
      : count(static_cast<int>(plane.size() / V)), size(plane.size()) {}

  __device__ int64_t output_size() const { return size; }

  // A unit, and the gradient of its outputs, as they lie in memory.
  template <typename scalar_t>
  using Raw = Pack<scalar_t, V>;
  template <typename scalar_t>
  using RawGrad = Pack<scalar_t, V>;

  // Returns which elements of the unit exist, as a bit mask.
  template <typename scalar_t>
  __device__ unsigned load_unit(const scalar_t* row, int unit, Raw<scalar_t>& raw) const {
    raw = load<V>(row + int64_t(unit) * V);
    return ~0u;
  }

  template <typename scalar_t>
  __device__ void store_unit(scalar_t* row, int unit, const acc_type<scalar_t> (&values)[V]) const {
    store<V>(row + int64_t(unit) * V, values);
  }

  template <typename scalar_t>
  __device__ void store_output(scalar_t* row, int unit,
                               const acc_type<scalar_t> (&values)[V]) const {
    store_unit(row, unit, values);
  }

  template <typename scalar_t>
  __device__ void load_output_grad(const scalar_t* row, int unit, RawGrad<scalar_t>& raw) const {
    load_unit(row, unit, raw);
  }

  // The gradient that element e of the unit gets from the output.
  template <typename scalar_t>
  __device__ static acc_type<scalar_t> output_grad(const RawGrad<scalar_t>& raw, int e) {
    return raw[e];
  }
};

// NCHW with pooling: V neighbours of line 2i and the V below them. With kPartial the plane may be
// odd and unaligned, V is 2 and elements are moved one by one.
template <int V, bool kPartialPlane>
struct PooledUnits {
  static constexpr int kElements = 2 * V;
  static constexpr int kLoads = kPartialPlane ? 2 * V : 2;
  static constexpr bool kPartial = kPartialPlane;
  static constexpr int kOutputs = V / 2;

  Plane plane;
  int columns;
  int count;

  explicit PooledUnits(Plane shape)
      : plane(shape),
        columns(ceil_div(shape.width, V)),
        count(ceil_div(shape.height, 2) * columns) {}

  __device__ int64_t output_size() const { return int64_t(plane.height / 2) * (plane.width / 2); }

  struct Position {
    int line, column;
  };

  __device__ Position position(int unit) const {
    const int pair = unit / columns;
    return {2 * pair, (unit - pair * columns) * V};
  }

  __device__ bool exists(Position at, int element) const {
    return at.line + element / V < plane.height && at.column + element % V < plane.width;
  }

  __device__ int64_t offset(Position at, int element) const {
    return int64_t(at.line + element / V) * plane.width + at.column + element % V;
  }

  // Offset of the unit's first output, or -1 if it has none.
  __device__ int64_t output_offset(Position at) const {
    if (kPartial && (at.line + 1 >= plane.height || at.column + 1 >= plane.width)) return -1;
    return int64_t(at.line / 2) * (plane.width / 2) + at.column / 2;
  }

  template <typename scalar_t>
  struct Raw {
    static constexpr int kWidth = kPartial ? 1 : V;
    Pack<scalar_t, kWidth> pack[kElements / kWidth];

    __device__ acc_type<scalar_t> operator[](int e) const { return pack[e / kWidth][e % kWidth]; }
  };
  template <typename scalar_t>
  using RawGrad = Pack<scalar_t, kOutputs>;

  template <typename scalar_t>
  __device__ unsigned load_unit(const scalar_t* row, int unit, Raw<scalar_t>& raw) const {
    const Position at = position(unit);
    if constexpr (kPartial) {
      unsigned mask = 0;
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const bool here = exists(at, e);
        raw.pack[e].lane[0] = here ? row[offset(at, e)] : scalar_t{};
        mask |= here ? 1u << e : 0u;
      }
      return mask;
    } else {
      raw.pack[0] = load<V>(row + offset(at, 0));
      raw.pack[1] = load<V>(row + offset(at, V));
      return ~0u;
    }
  }

  template <typename scalar_t>
  __device__ void store_unit(scalar_t* row, int unit,
                             const acc_type<scalar_t> (&values)[kElements]) const {
    using acc_t = acc_type<scalar_t>;
    const Position at = position(unit);
    if constexpr (kPartial) {
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (exists(at, e)) row[offset(at, e)] = narrow<scalar_t>(values[e]);
    } else {
      acc_t upper[V], lower[V];
#pragma unroll
      for (int e = 0; e < V; ++e) {
        upper[e] = values[e];
        lower[e] = values[V + e];
      }
      store<V>(row + offset(at, 0), upper);
      store<V>(row + offset(at, V), lower);
    }
  }

  template <typename scalar_t>
  __device__ void store_output(scalar_t* row, int unit,
                               const acc_type<scalar_t> (&values)[kElements]) const {
    using acc_t = acc_type<scalar_t>;
    const int64_t target = output_offset(position(unit));
    if (kPartial && target < 0) return;
    acc_t means[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o)
      means[o] = acc_t(0.25) *
                 (values[2 * o] + values[2 * o + 1] + values[V + 2 * o] + values[V + 2 * o + 1]);
    store<kOutputs>(row + target, means);
  }

  template <typename scalar_t>
  __device__ void load_output_grad(const scalar_t* row, int unit, RawGrad<scalar_t>& raw) const {
    const int64_t source = output_offset(position(unit));
    if (kPartial && source < 0)
      raw = {};
    else
      raw = load<kOutputs>(row + source);
  }

  template <typename scalar_t>
  __device__ static acc_type<scalar_t> output_grad(const RawGrad<scalar_t>& raw, int e) {
    return acc_type<scalar_t>(0.25) * raw[(e % V) / 2];
  }
};

// What a map that reads nothing besides x has in place of operands.
struct NothingBesidesX {
  template <typename Units>
  struct Operands {};
  template <int kElements, int V>
  struct PixelOperands {};

  template <typename Units>
  __device__ void load(const Units&, int64_t, int64_t, int, Operands<Units>&) const {}
  __device__ void start_at(int64_t, int64_t) {}
  template <int V, typename Operands>
  __device__ void load_output(bool, int64_t, Operands&) const {}
  template <int V, typename Operands>
  __device__ void load_pixel(int64_t, int, Operands&) const {}
};

// Where a unit of pixels lies: its first pixel, which elements exist (a bit mask), and its output
// pixel, -1 for a window that the plane ends inside of. Of kAround pixels beside it, which belong
// to other units but to its window too, `around` says which exist.
struct PixelPosition {
  int first, output;
  unsigned mask, around = 0;
};

// NHWC: one pixel.
struct LinearPixels {
  static constexpr int kElements = 1;
  static constexpr int kAround = 0;
  static constexpr int kLoads = 1;

  int count;

  explicit LinearPixels(Plane plane) : count(static_cast<int>(plane.size())) {}

  __host__ __device__ int64_t outputs() const { return count; }
  __device__ PixelPosition position(int unit) const { return {unit, unit, 1u}; }
  __device__ int step(int) const { return 0; }
};

// NHWC with pooling: the 2x2 window of one output pixel.
struct PooledPixels {
  static constexpr int kElements = 4;
  static constexpr int kAround = 0;
  static constexpr int kLoads = 8;  // four, at addresses far apart: these count double in registers

  Plane plane;
  int columns;
  int count;

  explicit PooledPixels(Plane shape)
      : plane(shape),
        columns(ceil_div(shape.width, 2)),
        count(ceil_div(shape.height, 2) * columns) {}

  __host__ __device__ int64_t outputs() const {
    return int64_t(plane.height / 2) * (plane.width / 2);
  }

  __device__ PixelPosition position(int unit) const {
    const int pair = unit / columns;
    const int column = unit - pair * columns;
    const bool right = 2 * column + 1 < plane.width, below = 2 * pair + 1 < plane.height;
    return {2 * pair * plane.width + 2 * column,
            right && below ? pair * (plane.width / 2) + column : -1,
            1u | (right ? 2u : 0u) | (below ? 4u : 0u) | (right && below ? 8u : 0u)};
  }

  // From the first pixel of a window to its element e.
  __device__ int step(int e) const { return e / 2 * plane.width + e % 2; }
};

// NHWC with a 3x3 pool of stride 2 and padding 1: the 2x2 pixels in the middle and to the lower
// right of a window. Around them lie three pixels above, from the left, and two on the left; the
// next windows to the right, below and both share pixels with the unit. Every unit has an output,
// in odd planes too.
struct MaxPixels {
  static constexpr int kElements = 4;
  static constexpr int kAround = 5;
  static constexpr int kWindows = 4;
  static constexpr int kLoads = kElements + kAround;

  Plane plane;
  int columns;
  int count;

  explicit MaxPixels(Plane shape)
      : plane(shape),
        columns(ceil_div(shape.width, 2)),
        count(ceil_div(shape.height, 2) * columns) {}

  __host__ __device__ int64_t outputs() const { return count; }

  __device__ PixelPosition position(int unit) const {
    const int pair = unit / columns;
    const int column = unit - pair * columns;
    const bool right = 2 * column + 1 < plane.width, below = 2 * pair + 1 < plane.height;
    const bool left = column > 0, above = pair > 0;
    return {2 * pair * plane.width + 2 * column, unit,
            1u | (right ? 2u : 0u) | (below ? 4u : 0u) | (right && below ? 8u : 0u),
            (left && above ? 1u : 0u) | (above ? 2u : 0u) | (right && above ? 4u : 0u) |
                (left ? 8u : 0u) | (left && below ? 16u : 0u)};
  }

  // From the first pixel of a unit to its element e, and to pixel a around it.
  __device__ int step(int e) const { return e / 2 * plane.width + e % 2; }
  __device__ int step_around(int a) const {
    return a < 3 ? a - 1 - plane.width : (a - 3) * plane.width - 1;
  }

  // Which pixel lies at place p of the window, line by line: an element, or kElements + a.
  __device__ static constexpr int at_place(int p) {
    return p < 3 ? kElements + p : p % 3 == 0 ? kElements + 2 + p / 3 : p / 3 * 2 + p % 3 - 3;
  }

  // From the output of a unit to that of window w, the next one to the right (odd) or below (2, 3).
  __device__ int step_to_window(int w) const { return w / 2 * columns + w % 2; }
  __device__ bool has_window(int unit, int w) const {
    const int column = unit - unit / columns * columns;
    return column + w % 2 < columns && unit + w / 2 * columns < count;
  }
};

}  // namespace ltdd::cuda
