#pragma once

// Chooses, from the shape alone, how the kernels of rows.h and pixels.h are laid over an activation.
// Nothing here asks the device: the same shape gives the same bits on every GPU.

#include <algorithm>

#include "ops.h"
#include "pixels.h"
#include "rows.h"

namespace ltdd::cuda {

inline constexpr int kRegisterElements = 32;  // of x, held by one thread
inline constexpr int kMaxUnits = 8;           // loads in flight of one thread
inline constexpr int kTargetBlocks = 528;     // four per multiprocessor of a large GPU
inline constexpr int kMaxSplits = 16;

inline Plane plane_of(const Activation& shape) { return {shape.height, shape.width}; }

// Calls body.template operator()<scalar_t>() for the storage type.
template <typename Body>
void for_type(Type type, const Body& body) {
  switch (type) {
    case Type::kFloat32:
      return body.template operator()<float>();
    case Type::kFloat64:
      return body.template operator()<double>();
    case Type::kFloat16:
      return body.template operator()<__half>();
    case Type::kBFloat16:
      return body.template operator()<__nv_bfloat16>();
  }
}

// Calls body.template operator()<kLanes, kUnits>(grid, blocks, threads) with the fewest lanes that
// hold a row in registers, or with as many warps as a long row deserves.
template <typename Units, typename Body>
void for_row_grid(const Activation& shape, const Units& units, const Body& body) {
  constexpr int kMost = std::min(kMaxUnits, kRegisterElements / Units::kElements);
  constexpr int kFew = std::min(2, kMost);
  RowGrid grid{shape.rows(), shape.channels, 1, units.count};
  const auto with_lanes = [&]<int kLanes, int kUnits>() {
    const int64_t blocks = ceil_div<int64_t>(grid.rows, kRowThreads / kLanes);
    body.template operator()<kLanes, kUnits>(grid, dim3(static_cast<unsigned>(blocks)),
                                             dim3(kRowThreads));
  };
  // Small planes that cannot be read by vectors are rare: two kernels do for them.
  if constexpr (Units::kElements > 1 && !Units::kPartial) {
    if (units.count <= 2 * kFew) return with_lanes.template operator()<2, kFew>();
    if (units.count <= 4 * kFew) return with_lanes.template operator()<4, kFew>();
    if (units.count <= 16 * kFew && units.count > 8 * kFew)
      return with_lanes.template operator()<16, kFew>();
    if (units.count <= 32 * kFew && units.count > 8 * kFew)
      return with_lanes.template operator()<32, kFew>();
  }
  if (units.count <= 8 * kFew) return with_lanes.template operator()<8, kFew>();
  if (units.count <= 32 * kMost) return with_lanes.template operator()<32, kMost>();

  grid.warps_per_row = power_of_two_above(ceil_div(units.count, 32 * kMost), kMaxWarpsPerRow);
  grid.share = ceil_div(units.count, kWarp * grid.warps_per_row) * kWarp;
  body.template operator()<32, kMost>(grid, dim3(static_cast<unsigned>(grid.rows)),
                                      dim3(static_cast<unsigned>(kWarp * grid.warps_per_row)));
}

// How blocks and splits are laid over an NHWC activation; V channels and kUnits units per thread.
struct PixelPlan {
  PixelGrid grid;
  dim3 blocks, threads;
};

inline PixelPlan plan_pixels(const Activation& shape, int units, int vector, int units_in_tile) {
  const int64_t vectors = ceil_div<int64_t>(shape.channels, vector);
  // Narrow blocks keep more multiprocessors busy; eight vectors still fill a 128-byte line.
  int across = power_of_two_above(vectors, kWarp);
  while (across > 8 && ceil_div<int64_t>(vectors, across) * shape.images < kTargetBlocks)
    across /= 2;
  const int lines =
      power_of_two_above(ceil_div(units, units_in_tile), kPixelThreads / std::max(across, 8));
  const int64_t tiles = ceil_div<int64_t>(vectors, across);
  const int64_t wanted = ceil_div<int64_t>(kTargetBlocks, tiles * shape.images);
  const int64_t worthwhile = std::max(1, units / (2 * lines * units_in_tile));
  const int limit = static_cast<int>(std::min({wanted, worthwhile, int64_t(kMaxSplits)}));
  const int share = ceil_div(units, limit);
  const int splits = ceil_div(units, share);
  return {{shape.images, shape.channels, splits, share},
          dim3(static_cast<unsigned>(shape.images * splits), static_cast<unsigned>(tiles)),
          dim3(static_cast<unsigned>(across), static_cast<unsigned>(lines))};
}

template <typename Pixels>
inline constexpr int tile_units(int vector) {
  return std::clamp(kRegisterElements / (vector * Pixels::kElements), 1, kMaxUnits);
}

// (splits, N, C) means and m2s, then the counts.
template <typename acc_t>
SplitParts<acc_t> split_parts(const PixelGrid& grid, void* scratch) {
  if (grid.splits == 1) return {nullptr, nullptr, nullptr};
  acc_t* base = static_cast<acc_t*>(scratch);
  const int64_t part = grid.splits * grid.images * grid.channels;
  return {base, base + part, base + 2 * part};
}

template <typename scalar_t, typename Units, typename Epilogue>
void launch_rows(const Activation& shape, const Units& units, const scalar_t* x, void* mean,
                 void* m2, const Epilogue& epilogue, cudaStream_t stream) {
  using acc_t = acc_type<scalar_t>;
  for_row_grid(shape, units,
               [&]<int kLanes, int kUnits>(const RowGrid& grid, dim3 blocks, dim3 threads) {
                 launch(&row_moments_kernel<scalar_t, Units, kLanes, kUnits, Epilogue>, blocks,
                        threads, 0, stream, x, static_cast<acc_t*>(mean), static_cast<acc_t*>(m2),
                        grid, shape.size(), units, epilogue);
               });
}

template <typename scalar_t, typename Units, typename Gradient>
void launch_row_gradient(const Activation& shape, const Units& units, const scalar_t* x,
                         scalar_t* dx, const Gradient& gradient, cudaStream_t stream) {
  for_row_grid(shape, units,
               [&]<int kLanes, int kUnits>(const RowGrid& grid, dim3 blocks, dim3 threads) {
                 launch(&row_gradient_kernel<scalar_t, Units, kLanes, kUnits, Gradient>, blocks,
                        threads, 0, stream, x, dx, grid, shape.size(), units, gradient);
               });
}

template <int V, typename scalar_t, typename Pixels, typename Epilogue>
void launch_pixels(const Activation& shape, const Pixels& pixels, const scalar_t* x, void* mean,
                   void* m2, void* scratch, const Epilogue& epilogue, cudaStream_t stream) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kUnits = tile_units<Pixels>(V);
  const PixelPlan plan = plan_pixels(shape, pixels.count, V, kUnits);
  const SplitParts<acc_t> parts = split_parts<acc_t>(plan.grid, scratch);
  launch(&pixel_moments_kernel<scalar_t, V, Pixels, kUnits, Epilogue>, plan.blocks, plan.threads,
         0, stream, x, static_cast<acc_t*>(mean), static_cast<acc_t*>(m2), parts, plan.grid,
         shape.size(), pixels, epilogue);
  if (plan.grid.splits == 1) return;
  launch(&merge_splits_kernel<scalar_t>,
         dim3(static_cast<unsigned>(ceil_div<int64_t>(shape.rows(), kPixelThreads))),
         dim3(kPixelThreads), 0, stream, x, static_cast<acc_t*>(mean), static_cast<acc_t*>(m2),
         parts, plan.grid, shape.size());
}

template <int V, typename scalar_t, typename Pixels, typename Gradient>
void launch_pixel_gradient(const Activation& shape, const Pixels& pixels, const scalar_t* x,
                           scalar_t* dx, const Gradient& gradient, cudaStream_t stream) {
  constexpr int kUnits = tile_units<Pixels>(V);
  const PixelPlan plan = plan_pixels(shape, pixels.count, V, kUnits);
  launch(&pixel_gradient_kernel<scalar_t, V, Pixels, kUnits, Gradient>, plan.blocks, plan.threads,
         0, stream, x, dx, plan.grid, shape.size(), pixels, gradient);
}

}  // namespace ltdd::cuda
