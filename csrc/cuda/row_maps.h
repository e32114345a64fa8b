#pragma once

// What is done to NCHW activations element by element, with a few numbers a row: a map of x (and of
// what lies beside it) to another activation, and the sums of a gradient that a norm wants.
//
// Lanes, warps and units as in rows.h; all loads of a tile come first.

#include "rows.h"

namespace ltdd::cuda {

// Calls body(unit, operands, raw) for each unit of a seat, when its tile has been loaded.
template <int kLanes, int kUnits, typename scalar_t, typename Units, typename Map, typename Body>
__device__ __forceinline__ void for_row_tiles(const scalar_t* x, const RowSeat<kLanes>& seat,
                                              int64_t size, const Units& units, const Map& map,
                                              const Body& body) {
  const int64_t start = seat.row * size;
  for (int first = seat.begin; first < seat.end; first += kLanes * kUnits) {
    typename Units::template Raw<scalar_t> raw[kUnits];
    typename Map::template Operands<Units> operands[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * kLanes + seat.lane;
      if (unit < seat.end) {
        units.load_unit(x + start, unit, raw[u]);
        map.load(units, start, seat.row * units.output_size(), unit, operands[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * kLanes + seat.lane;
      if (unit < seat.end) body(unit, operands[u], raw[u]);
    }
  }
}

// out = map(x), pooled where the map leads to outputs.
template <typename scalar_t, typename Units, int kLanes, int kUnits, typename Map>
__global__ void __launch_bounds__(kMaxWarpsPerRow* kWarp, kRowBlocks)
    row_map_kernel(const scalar_t* __restrict__ x,  // (rows, S)
                   scalar_t* __restrict__ out,      // (rows, S), or an output a window
                   RowGrid grid, int64_t size, Units units, Map map) {
  const RowSeat<kLanes> seat(grid, units.count);
  if (seat.row >= grid.rows) return;
  const int64_t start = seat.row * size;
  const auto coefficients = map.coefficients(seat.row, grid.channel_of(seat.row));
  for_row_tiles<kLanes, kUnits>(
      x, seat, size, units, map, [&](int unit, const auto& operands, const auto& raw) {
        acc_type<scalar_t> values[Units::kElements];
        map.apply(units, start, unit, [&](int) { return coefficients; }, operands, raw, values);
        if constexpr (Map::kToOutputs)
          units.store_output(out + seat.row * units.output_size(), unit, values);
        else
          units.store_unit(out + start, unit, values);
      });
}

// sums[r] = sum_s g, sums[rows + r] = sum_s g (x - center), g being the gradient before the bound.
template <typename scalar_t, typename Units, int kLanes, int kUnits, typename Gradient>
__global__ void __launch_bounds__(kMaxWarpsPerRow* kWarp, kRowBlocks)
    row_sums_kernel(const scalar_t* __restrict__ x,  // (rows, S)
                    double* __restrict__ sums,       // (2, rows)
                    RowGrid grid, int64_t size, Units units, Gradient gradient) {
  using acc_t = acc_type<scalar_t>;
  RowSeat<kLanes> seat(grid, units.count);
  // Lanes without a row stay: their group takes part in the shuffles of its warp.
  const bool active = seat.row < grid.rows;
  if (!active) seat.row = 0, seat.end = seat.begin;
  const auto here = gradient.coefficients(seat.row, grid.channel_of(seat.row));
  acc_t sum = 0, sum_x = 0;
  for_row_tiles<kLanes, kUnits>(
      x, seat, size, units, gradient, [&](int, const auto& operands, const auto& raw) {
        acc_t part = 0, part_x = 0;
#pragma unroll
        for (int e = 0; e < Units::kElements; ++e) {
          const acc_t value = raw[e];
          const acc_t g = gradient.template before_bound<Units>(here, operands, e, value);
          part += g;
          part_x += g * (value - here.moments.center);
        }
        sum += part;
        sum_x += part_x;
      });
  sum = sum_over_lanes<kLanes>(sum);
  sum_x = sum_over_lanes<kLanes>(sum_x);
  if (kLanes == kWarp && grid.warps_per_row > 1) {
    __shared__ acc_t found[2][kMaxWarpsPerRow];
    if (seat.lane == 0) {
      found[0][seat.warp] = sum;
      found[1][seat.warp] = sum_x;
    }
    __syncthreads();
    sum = sum_x = 0;
    for (int warp = 0; warp < grid.warps_per_row; ++warp) {
      sum += found[0][warp];
      sum_x += found[1][warp];
    }
  }
  if (active && seat.warp == 0 && seat.lane == 0) {
    sums[seat.row] = sum;
    sums[grid.rows + seat.row] = sum_x;
  }
}

}  // namespace ltdd::cuda
