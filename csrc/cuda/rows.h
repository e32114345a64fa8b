#pragma once

// Row moments in NCHW, where the S numbers of a row lie together.
//
//   mean[r] = sum_s x[r, s] / S,   m2[r] = sum_s (x[r, s] - mean[r])^2,   r = n * C + c
//
// kLanes lanes of a warp share a row; each holds up to kUnits units in registers. All loads come
// first, then an exact two-pass over the registers, with the sums taken by xor shuffles. Rows
// longer than a warp's registers are cut into chunks, merged in double and in a fixed order, by one
// warp or by the several warps of a block. The epilogue writes what else is wanted of x (nothing,
// or y) from the same registers. x is read once; no atomics, so results never vary.

#include "../common/moments.h"
#include "units.h"

namespace ltdd::cuda {

inline constexpr int kRowThreads = 128;
inline constexpr int kMaxWarpsPerRow = 8;
// Blocks that must fit on a multiprocessor. Said aloud, because left to itself ptxas spills a
// register or two in order to fit one block more.
inline constexpr int kRowBlocks = 2;

// The rows of a launch and how threads are dealt to them.
struct RowGrid {
  int64_t rows;
  int64_t channels;
  int warps_per_row;  // 1 unless one row needs more than a warp
  int share;          // units per warp, a multiple of 32 where several warps share a row

  __device__ int channel_of(int64_t row) const {
    // A 64-bit remainder costs as much as a small row itself.
    return rows <= INT32_MAX
               ? static_cast<int>(static_cast<unsigned>(row) % static_cast<unsigned>(channels))
               : static_cast<int>(row % channels);
  }
};

// Where this thread works: its row, and the units [begin, end) its group of lanes goes through.
template <int kLanes>
struct RowSeat {
  int64_t row;
  int begin, end;
  int warp, lane;

  __device__ RowSeat(const RowGrid& grid, int units) {
    const int width = kLanes * grid.warps_per_row;
    const int member = static_cast<int>(threadIdx.x) % width;
    row = int64_t(blockIdx.x) * (static_cast<int>(blockDim.x) / width) +
          static_cast<int>(threadIdx.x) / width;
    warp = member / kLanes;
    lane = member % kLanes;
    begin = warp * grid.share;
    end = begin + grid.share < units ? begin + grid.share : units;
  }
};

// Whether element e of a unit exists; the mask of a whole unit is all ones or zero.
template <typename Units>
__device__ __forceinline__ bool has(unsigned mask, int e) {
  return Units::kPartial ? (mask >> e & 1u) != 0 : mask != 0;
}

template <typename acc_t, int kCount>
__device__ __forceinline__ acc_t sum_of(const acc_t (&values)[kCount]) {
  acc_t sum = values[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) sum += values[i];
  return sum;
}

// Two-pass moments of what the lanes of a group hold. The first pass, about the pivot, only finds
// the center: a number of the storage type near the mean, from which the differences that the
// second pass adds up are as good as exact.
template <typename scalar_t, typename Units, int kLanes, int kUnits>
__device__ __forceinline__ Moments<double> register_moments(
    const acc_type<scalar_t> (&values)[kUnits][Units::kElements], const unsigned (&mask)[kUnits],
    acc_type<scalar_t> pivot, int full_count) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kChains = Units::kElements < 4 ? Units::kElements : 4;
  int elements = full_count;
  if constexpr (Units::kPartial) {
    elements = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) elements += __popc(mask[u]);
    elements = sum_over_lanes<kLanes>(elements);
  }
  const acc_t inverse = acc_t(1) / static_cast<acc_t>(elements);

  acc_t sums[kChains] = {};
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e)
      if (has<Units>(mask[u], e)) sums[e % kChains] += values[u][e] - pivot;
  const acc_t shift = sum_over_lanes<kLanes>(sum_of(sums)) * inverse;
  const acc_t center = center_from<scalar_t>(pivot + shift);

  acc_t gaps[kChains] = {}, squares[kChains] = {};
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e)
      if (has<Units>(mask[u], e)) {
        const acc_t gap = values[u][e] - center;
        gaps[e % kChains] += gap;
        squares[e % kChains] += gap * gap;
      }
  const acc_t left = sum_over_lanes<kLanes>(sum_of(gaps));
  const acc_t rest = rest_of_mean(center, left * inverse);
  const acc_t m2 = sum_over_lanes<kLanes>(sum_of(squares)) - left * rest;
  return {double(elements), double(center) + double(rest), double(m2)};
}

// Merges what the warps of a block found for their one row; thread 0 gets the result.
inline __device__ Moments<double> merge_warps(const Moments<double>& mine, int warp, int lane,
                                              int warps) {
  __shared__ double found[3][kMaxWarpsPerRow];
  if (lane == 0) {
    found[0][warp] = mine.count;
    found[1][warp] = mine.mean;
    found[2][warp] = mine.m2;
  }
  __syncthreads();
  Moments<double> all = mine;
  if (threadIdx.x == 0)
    for (int w = 1; w < warps; ++w)
      all = merge(all, Moments<double>{found[0][w], found[1][w], found[2][w]});
  return all;
}

template <typename scalar_t, typename Units, int kLanes, int kUnits, typename Epilogue>
__global__ void __launch_bounds__(kMaxWarpsPerRow* kWarp, kRowBlocks)
    row_moments_kernel(const scalar_t* __restrict__ x,  // (rows, S)
                       double* __restrict__ mean,       // (rows)
                       double* __restrict__ m2,         // (rows)
                       RowGrid grid, int64_t size, Units units, Epilogue epilogue) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kElements = Units::kElements;
  const RowSeat<kLanes> seat(grid, units.count);
  // Lanes without a row stay: their group takes part in the shuffles of its warp.
  const bool active = seat.row < grid.rows;
  const int64_t row = active ? seat.row : 0;
  const scalar_t* source = x + row * size;
  const acc_t pivot = pivot_from(static_cast<acc_t>(widen(source[0])));
  const auto coefficients = epilogue.coefficients(grid.channel_of(row));

  Moments<double> found{};
  for (int first = seat.begin; first < seat.end; first += kLanes * kUnits) {
    typename Units::template Raw<scalar_t> raw[kUnits];
    typename Epilogue::template Operands<Units> operands[kUnits];
    unsigned mask[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * kLanes + seat.lane;
      mask[u] = 0;
      if (active && unit < seat.end) {
        mask[u] = units.load_unit(source, unit, raw[u]);
        epilogue.load(units, row * size, unit, operands[u]);
      }
    }
    acc_t values[kUnits][kElements];
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int e = 0; e < kElements; ++e) values[u][e] = raw[u][e];
    const int left = seat.end - first;
    const int full = (left < kLanes * kUnits ? left : kLanes * kUnits) * kElements;
    const auto part = register_moments<scalar_t, Units, kLanes, kUnits>(values, mask, pivot, full);
    // Most rows are a single part; merging costs doubles, which many GPUs have few units for.
    found = first == seat.begin ? part : merge(found, part);
    if constexpr (Epilogue::kWrites) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int unit = first + u * kLanes + seat.lane;
        if (active && unit < seat.end)
          epilogue.write(
              units, row * units.output_size(), unit, [&](int) { return coefficients; },
              operands[u], values[u]);
      }
    }
  }
  if (kLanes == kWarp && grid.warps_per_row > 1)
    found = merge_warps(found, seat.warp, seat.lane, grid.warps_per_row);
  if (active && seat.warp == 0 && seat.lane == 0) {
    mean[row] = found.mean;
    m2[row] = found.m2;
  }
}

}  // namespace ltdd::cuda
