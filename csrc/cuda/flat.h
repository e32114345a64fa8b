#pragma once

// Row moments in NCHW for small planes that no vector fits (7x7, 14x14 in 16 bits, 5x5).
//
// Such rows do not start on 16-byte boundaries, but a run of V rows does, V being the elements of a
// vector. A block takes a run of rows whose length is a multiple of V, fetches it by aligned
// vectors into shared memory, and computes the moments of each row from there, a few lanes per row,
// as rows.h does from registers. What else is wanted of x is written by vectors as they pass, with
// the coefficients of each element's own row. x is read once; no atomics.

#include "rows.h"

namespace ltdd::cuda {

inline constexpr int kFlatThreads = 128;
inline constexpr int kFlatBlocks = 4;         // on a multiprocessor; see kRowBlocks
inline constexpr int kFlatBytes = 16 * 1024;  // of shared memory: several blocks fit
inline constexpr int kFlatUnits = 8;          // elements per lane
inline constexpr int kMaxFlatSize = kWarp * kFlatUnits;
inline constexpr int64_t kMaxFlatChannels = INT32_MAX;

struct FlatGrid {
  int64_t rows;
  unsigned channels;
  int size;            // S
  int rows_per_block;  // a multiple of V

  __device__ int64_t first_row() const { return int64_t(blockIdx.x) * rows_per_block; }
  __device__ unsigned first_channel() const {
    return static_cast<unsigned>(first_row() % channels);
  }
  __device__ int rows_here() const {
    const int64_t left = rows - first_row();
    return left < rows_per_block ? static_cast<int>(left) : rows_per_block;
  }
};

// The rows of V neighbouring elements of a block's run. They change at most every S elements, so a
// division finds the first and counting finds the others.
struct RowCursor {
  int row, inside, size;

  __device__ RowCursor(int element, int plane)
      : row(element / plane), inside(element % plane), size(plane) {}

  __device__ bool advance() {
    if (++inside < size) return false;
    inside = 0;
    ++row;
    return true;
  }
};

// Coefficients of each of V elements; lookup(local row) reads those of a row.
template <int V, typename Lookup>
__device__ __forceinline__ auto coefficients_of(int element, int size, int rows_here,
                                                const Lookup& lookup) {
  struct {
    decltype(lookup(0)) at[V];
  } found;
  RowCursor cursor(element, size);
  auto current = lookup(cursor.row);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    found.at[v] = current;
    if (cursor.advance() && cursor.row < rows_here) current = lookup(cursor.row);
  }
  return found;
}

template <typename scalar_t, int V, int kLanes, typename Epilogue>
__global__ void __launch_bounds__(kFlatThreads, kFlatBlocks)
    flat_moments_kernel(const scalar_t* __restrict__ x,  // (rows, S)
                        double* __restrict__ mean,       // (rows)
                        double* __restrict__ m2,         // (rows)
                        FlatGrid grid, Epilogue epilogue) {
  using acc_t = acc_type<scalar_t>;
  alignas(kVectorBytes) __shared__ scalar_t tile[kFlatBytes / sizeof(scalar_t)];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_row = grid.first_row();
  const int rows = grid.rows_here();
  const int elements = rows * grid.size;
  const int64_t start = first_row * grid.size;
  const unsigned first_channel = grid.first_channel();
  const auto lookup = [&](int row) {
    return epilogue.coefficients((first_channel + static_cast<unsigned>(row)) % grid.channels);
  };
  const auto pass_by = [&]<int kWidth>(int unit) {
    using Units = LinearUnits<kWidth>;
    const Units units(Plane{1, kWidth});
    acc_t values[kWidth];
    typename Epilogue::template Operands<kWidth> operands;
    units.load_unit(x + start, unit, values);
    epilogue.load(units, start, unit, operands);
    store<kWidth>(tile + unit * kWidth, values);  // widened and narrowed: the same number
    if constexpr (Epilogue::kWrites) {
      const auto found = coefficients_of<kWidth>(unit * kWidth, grid.size, rows, lookup);
      epilogue.write(units, start, unit, [&](int e) { return found.at[e]; }, operands, values);
    }
  };
  const int vectors = elements / V;
  for (int j = thread; j < vectors; j += kFlatThreads) pass_by.template operator()<V>(j);
  for (int j = vectors * V + thread; j < elements; j += kFlatThreads)
    pass_by.template operator()<1>(j);
  __syncthreads();

  const LinearUnits<1> units(Plane{1, grid.size});
  const int lane = thread % kLanes;
  // All lanes of a warp go through the same number of rows: the shuffles need every one of them.
  for (int base = 0; base < rows; base += kFlatThreads / kLanes) {
    const int row = base + thread / kLanes;
    const bool active = row < rows;
    const scalar_t* source = tile + (active ? row : 0) * grid.size;
    const acc_t pivot = pivot_from(static_cast<acc_t>(widen(source[0])));
    acc_t values[kFlatUnits][1];
    unsigned mask[kFlatUnits];
#pragma unroll
    for (int u = 0; u < kFlatUnits; ++u) {
      const int unit = u * kLanes + lane;
      mask[u] = active && unit < grid.size ? units.load_unit(source, unit, values[u]) : 0;
    }
    const auto found = register_moments<scalar_t, LinearUnits<1>, kLanes, kFlatUnits>(
        values, mask, pivot, grid.size);
    if (active && lane == 0) {
      mean[first_row + row] = found.mean;
      m2[first_row + row] = found.m2;
    }
  }
}

template <typename scalar_t, int V, typename Gradient>
__global__ void __launch_bounds__(kFlatThreads, kFlatBlocks)
    flat_gradient_kernel(const scalar_t* __restrict__ x,  // (rows, S)
                         scalar_t* __restrict__ dx,       // (rows, S)
                         FlatGrid grid, Gradient gradient) {
  using acc_t = acc_type<scalar_t>;
  const int64_t first_row = grid.first_row();
  const int rows = grid.rows_here();
  const int elements = rows * grid.size;
  const int64_t start = first_row * grid.size;
  const unsigned first_channel = grid.first_channel();
  const auto lookup = [&](int row) {
    return gradient.coefficients(first_row + row,
                                 (first_channel + static_cast<unsigned>(row)) % grid.channels);
  };
  const auto pass_by = [&]<int kWidth>(int unit) {
    using Units = LinearUnits<kWidth>;
    const Units units(Plane{1, kWidth});
    acc_t values[kWidth];
    typename Gradient::template Operands<kWidth> operands;
    units.load_unit(x + start, unit, values);
    gradient.load(units, start, start, unit, operands);
    const auto found = coefficients_of<kWidth>(unit * kWidth, grid.size, rows, lookup);
    gradient.apply(units, start, unit, [&](int e) { return found.at[e]; }, operands, values);
    units.store_unit(dx + start, unit, values);
  };
  const int thread = static_cast<int>(threadIdx.x);
  const int vectors = elements / V;
  for (int j = thread; j < vectors; j += kFlatThreads) pass_by.template operator()<V>(j);
  for (int j = vectors * V + thread; j < elements; j += kFlatThreads)
    pass_by.template operator()<1>(j);
}

}  // namespace ltdd::cuda
