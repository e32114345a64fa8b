#pragma once

// Row moments in NCHW for small planes that no vector fits (7x7, 14x14 in 16 bits, 5x5).
//
// Such rows do not start on 16-byte boundaries, but a run of V rows does, V being the elements of a
// vector. A block takes a run of rows whose length is a multiple of V, fetches it by aligned
// vectors into shared memory, and computes the moments of each row from there, a few lanes per row,
// as rows.h does from registers. What else is wanted of x is written by vectors as they pass, with
// the coefficients of each element's own row, which the block has put into shared memory before.
// x is read once; no atomics.

#include "rows.h"

namespace ltdd::cuda {

inline constexpr int kFlatThreads = 128;
inline constexpr int kFlatBlocks = 4;         // on a multiprocessor; see kRowBlocks
inline constexpr int kFlatBytes = 16 * 1024;  // of shared memory: several blocks fit
inline constexpr int kFlatUnits = 8;          // elements per lane
inline constexpr int kMaxFlatSize = kWarp * kFlatUnits;
inline constexpr int kFlatLoads = 4;      // of vectors, in flight in one thread
inline constexpr int kMaxFlatRows = 256;  // of a block; a multiple of every V
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

// The rows of a block, one after the other; 16-byte loads from shared memory fetch coefficients.
template <typename Coefficients>
struct alignas(sizeof(Coefficients) > 8 ? kVectorBytes : 8) FlatRow {
  Coefficients of;
};

// Where each of V neighbouring elements finds the coefficients of its row. Rows change at most
// every S elements, so a division finds the first and counting finds the others.
template <int V, typename Coefficients>
struct FlatLookup {
  const FlatRow<Coefficients>* row[V];

  __device__ FlatLookup(const FlatRow<Coefficients>* rows, int element, int size) {
    const unsigned first = static_cast<unsigned>(element) / static_cast<unsigned>(size);
    int left = static_cast<int>(first + 1) * size - element;  // elements until the next row
    rows += first;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (left == 0) {
        left = size;
        ++rows;
      }
      --left;
      row[v] = rows;
    }
  }

  __device__ const Coefficients& operator()(int v) const { return row[v]->of; }
};

// Calls body.template operator()<kWidth, kUnits>(first, count) for this thread's share of a run:
// units of kWidth elements at `first` and every kFlatThreads further on, as far as there are
// `count`. What no vector fits at the end of the run comes element by element.
template <int V, int kStreams, typename Body>
__device__ __forceinline__ void for_flat_units(int elements, const Body& body) {
  constexpr int kUnits = kStreams < kFlatLoads ? kFlatLoads / kStreams : 1;
  const int thread = static_cast<int>(threadIdx.x), vectors = elements / V;
#pragma unroll 1
  for (int first = thread; first < vectors; first += kUnits * kFlatThreads)
    body.template operator()<V, kUnits>(first, vectors);
  const int left = vectors * V + thread;
  if (left < elements) body.template operator()<1, 1>(left, elements);
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
  __shared__ FlatRow<typename Epilogue::Coefficients> of_row[Epilogue::kWrites ? kMaxFlatRows : 1];
  if constexpr (Epilogue::kWrites) {
    for (int row = thread; row < rows; row += kFlatThreads)
      of_row[row].of =
          epilogue.coefficients((first_channel + static_cast<unsigned>(row)) % grid.channels);
    __syncthreads();
  }
  for_flat_units<V, Epilogue::kStreams>(
      elements, [&]<int kWidth, int kUnits>(int first, int count) {
        using Units = LinearUnits<kWidth>;
        const Units units(Plane{1, kWidth});
        typename Units::template Raw<scalar_t> raw[kUnits];
        typename Epilogue::template Operands<Units> operands[kUnits];
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
          if (first + u * kFlatThreads < count) {
            units.load_unit(x + start, first + u * kFlatThreads, raw[u]);
            epilogue.load(units, start, first + u * kFlatThreads, operands[u]);
          }
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          const int unit = first + u * kFlatThreads;
          if (unit >= count) break;
          store<kWidth>(tile + unit * kWidth, raw[u]);
          if constexpr (Epilogue::kWrites) {
            acc_t values[kWidth];
#pragma unroll
            for (int e = 0; e < kWidth; ++e) values[e] = raw[u][e];
            epilogue.write(units, start, unit,
                           FlatLookup<kWidth, typename Epilogue::Coefficients>(
                               of_row, unit * kWidth, grid.size),
                           operands[u], values);
          }
        }
      });
  __syncthreads();

  const int lane = thread % kLanes;
  // All lanes of a warp go through the same number of rows: the shuffles need every one of them.
#pragma unroll 1
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
      mask[u] = active && unit < grid.size ? 1u : 0u;
      if (mask[u] != 0) values[u][0] = widen(source[unit]);
    }
    const auto found = register_moments<scalar_t, LinearUnits<1>, kLanes, kFlatUnits>(
        values, mask, pivot, grid.size);
    if (active && lane == 0) {
      mean[first_row + row] = found.mean;
      m2[first_row + row] = found.m2;
    }
  }
}

template <typename scalar_t, int V, typename Map>
__global__ void __launch_bounds__(kFlatThreads, kFlatBlocks)
    flat_map_kernel(const scalar_t* __restrict__ x,  // (rows, S)
                    scalar_t* __restrict__ out,      // (rows, S)
                    FlatGrid grid, Map map) {
  using acc_t = acc_type<scalar_t>;
  const int64_t first_row = grid.first_row();
  const int rows = grid.rows_here();
  const int elements = rows * grid.size;
  const int64_t start = first_row * grid.size;
  const unsigned first_channel = grid.first_channel();
  __shared__ FlatRow<typename Map::Coefficients> of_row[kMaxFlatRows];
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += kFlatThreads)
    of_row[row].of = map.coefficients(first_row + row,
                                      (first_channel + static_cast<unsigned>(row)) % grid.channels);
  __syncthreads();
  for_flat_units<V, Map::kStreams>(elements, [&]<int kWidth, int kUnits>(int first, int count) {
    using Units = LinearUnits<kWidth>;
    const Units units(Plane{1, kWidth});
    typename Units::template Raw<scalar_t> raw[kUnits];
    typename Map::template Operands<Units> operands[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
      if (first + u * kFlatThreads < count) {
        units.load_unit(x + start, first + u * kFlatThreads, raw[u]);
        map.load(units, start, start, first + u * kFlatThreads, operands[u]);
      }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * kFlatThreads;
      if (unit >= count) break;
      acc_t values[kWidth];
      map.apply(units, start, unit,
                FlatLookup<kWidth, typename Map::Coefficients>(of_row, unit * kWidth, grid.size),
                operands[u], raw[u], values);
      units.store_unit(out + start, unit, values);
    }
  });
}

}  // namespace ltdd::cuda
