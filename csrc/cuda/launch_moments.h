#pragma once

// Chooses, from the shape alone, how the kernels of rows.h, flat.h and pixels.h are laid over an
// activation.
// Nothing here asks the device: the same shape gives the same bits on every GPU.

#include <algorithm>

#include "flat.h"
#include "ops.h"
#include "pixel_maps.h"
#include "row_maps.h"

namespace ltdd::cuda {

inline constexpr int kRegisterElements = 32;  // of x, held by one thread
inline constexpr int kMaxLoads = 8;           // in flight in one thread
inline constexpr int kTargetBlocks = 528;     // four per multiprocessor of a large GPU
inline constexpr int kMaxLines = 32;          // threads of an NHWC block along the pixels
// Pixels of an NHWC plane for each of its blocks: enough to be worth a merge of their moments, or
// the coefficients of a map.
inline constexpr int kSplitPixels = 256;
inline constexpr int kMapPixels = 256;
inline constexpr int kMaxSplits = 64;

// Units, V channels wide, that a thread holds which reads `streams` tensors at once.
template <typename Units>
constexpr int units_in_registers(int vector, int streams) {
  const int by_elements = kRegisterElements / (vector * Units::kElements);
  const int most = std::min(by_elements, kMaxLoads / (streams * Units::kLoads));
  return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

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

// Calls body.template operator()<kLanes, kUnits>(grid, blocks, threads): a few lanes of a warp for
// a short row, a warp, or several warps for a long row. With kExact the lanes must hold their row
// in registers all at once (unless they are a whole warp), and the steps from one number of lanes
// to the next are finer, because idle lanes would wait for the others' shuffles.
template <bool kExact, int kStreams, typename Units, typename Body>
void for_row_grid(const Activation& shape, const Units& units, const Body& body) {
  constexpr int kMost = units_in_registers<Units>(1, kStreams);
  constexpr int kFew = std::min(2, kMost);
  constexpr bool kVectors = Units::kElements > 1 && !Units::kPartial;
  RowGrid grid{shape.rows(), shape.channels, 1, units.count};
  const auto with_lanes = [&]<int kLanes, int kUnits>() {
    const int64_t blocks = ceil_div<int64_t>(grid.rows, kRowThreads / kLanes);
    body.template operator()<kLanes, kUnits>(grid, dim3(static_cast<unsigned>(blocks)),
                                             dim3(kRowThreads));
  };
  // Small planes that cannot be read by vectors are rare: two kernels do for them.
  if constexpr (kVectors)
    if (units.count <= 2 * kFew) return with_lanes.template operator()<2, kFew>();
  if constexpr (kVectors && kExact) {
    if (units.count <= 4 * kFew) return with_lanes.template operator()<4, kFew>();
    if (units.count <= 8 * kFew) return with_lanes.template operator()<8, kFew>();
    if (units.count <= 16 * kFew) return with_lanes.template operator()<16, kFew>();
    if (units.count <= 32 * kFew) return with_lanes.template operator()<32, kFew>();
  }
  if (units.count <= 8 * kFew) return with_lanes.template operator()<8, kFew>();
  if (units.count <= 32 * kMost) return with_lanes.template operator()<32, kMost>();

  const int warps = std::min(ceil_div(units.count, kWarp * kMost), kMaxWarpsPerRow);
  grid.share = ceil_div(units.count, kWarp * warps) * kWarp;
  grid.warps_per_row = ceil_div(units.count, grid.share);  // none is left without a unit
  body.template operator()<32, kMost>(grid, dim3(static_cast<unsigned>(grid.rows)),
                                      dim3(static_cast<unsigned>(kWarp * grid.warps_per_row)));
}

// How blocks and splits are laid over an NHWC activation; V channels and kUnits units per thread.
struct PixelPlan {
  PixelGrid grid;
  dim3 blocks, threads;
};

// The number of images has no say: a sample's moments do not depend on the batch it is in. A block
// gets whole tiles, `least` pixels or more where there are as many, and a plane at most kMaxSplits
// blocks.
template <typename Pixels>
PixelPlan plan_pixels(const Activation& shape, const Pixels& pixels, int vector, int units_in_tile,
                      int least) {
  const int64_t vectors = ceil_div<int64_t>(shape.channels, vector);
  const int units = pixels.count;
  // Narrow blocks make many of them, and eight vectors still fill a line of 128 bytes; small planes
  // have too few lines for that.
  const int lines = power_of_two_above(ceil_div(units, units_in_tile), kMaxLines);
  const int across = power_of_two_above(vectors, std::max(8, std::min(kWarp, 128 / lines)));
  const int64_t tiles = ceil_div<int64_t>(vectors, across);
  const int tile = lines * units_in_tile;
  const int wanted = std::max(least / Pixels::kElements, ceil_div(units, kMaxSplits));
  const int share = ceil_div(wanted, tile) * tile;
  const int splits = ceil_div(units, share);
  return {{shape.images, static_cast<int>(shape.channels), splits, share,
           shape.size() * shape.channels, pixels.outputs() * shape.channels},
          dim3(static_cast<unsigned>(shape.images * splits), static_cast<unsigned>(tiles)),
          dim3(static_cast<unsigned>(across), static_cast<unsigned>(lines))};
}

// (splits, N, C) means and m2s, then the counts.
inline SplitParts split_parts(const PixelGrid& grid, void* scratch) {
  if (grid.splits == 1) return {nullptr, nullptr, nullptr};
  double* base = static_cast<double*>(scratch);
  const int64_t part = grid.splits * grid.images * grid.channels;
  return {base, base + part, base + 2 * part};
}

// Into how many parts planes are cut at most, whichever vector the pointers will allow.
template <typename Pixels>
int most_splits(const Activation& shape, int streams) {
  int splits = 1;
  if (!shape.channels_last || shape.rows() == 0 || shape.size() == 0) return splits;
  for (const int vector : {1, 4, 8}) {
    const int units = units_in_registers<Pixels>(vector, streams);
    const PixelPlan plan = plan_pixels(shape, Pixels(plane_of(shape)), vector, units, kSplitPixels);
    splits = std::max(splits, plan.grid.splits);
  }
  return splits;
}

// Bytes for the moments of these parts.
template <typename Pixels>
size_t scratch_bytes(const Activation& shape, int streams) {
  const int splits = most_splits<Pixels>(shape, streams);
  if (splits == 1) return 0;
  return sizeof(double) * static_cast<size_t>(splits) * (2 * static_cast<size_t>(shape.rows()) + 1);
}

template <typename scalar_t, typename Units, typename Epilogue>
void launch_rows(const Activation& shape, const Units& units, const scalar_t* x, double* mean,
                 double* m2, const Epilogue& epilogue, cudaStream_t stream) {
  for_row_grid<true, Epilogue::kStreams>(
      shape, units, [&]<int kLanes, int kUnits>(const RowGrid& grid, dim3 blocks, dim3 threads) {
        launch(&row_moments_kernel<scalar_t, Units, kLanes, kUnits, Epilogue>, blocks, threads, 0,
               stream, x, mean, m2, grid, shape.size(), units, epilogue);
      });
}

template <typename scalar_t, typename Units, typename Map>
void launch_row_map(const Activation& shape, const Units& units, const scalar_t* x, scalar_t* out,
                    const Map& map, cudaStream_t stream) {
  for_row_grid<false, Map::kStreams>(
      shape, units, [&]<int kLanes, int kUnits>(const RowGrid& grid, dim3 blocks, dim3 threads) {
        launch(&row_map_kernel<scalar_t, Units, kLanes, kUnits, Map>, blocks, threads, 0, stream, x,
               out, grid, shape.size(), units, map);
      });
}

template <typename scalar_t, typename Units, typename Gradient>
void launch_row_sums(const Activation& shape, const Units& units, const scalar_t* x, double* sums,
                     const Gradient& gradient, cudaStream_t stream) {
  for_row_grid<false, Gradient::kStreams>(
      shape, units, [&]<int kLanes, int kUnits>(const RowGrid& grid, dim3 blocks, dim3 threads) {
        launch(&row_sums_kernel<scalar_t, Units, kLanes, kUnits, Gradient>, blocks, threads, 0,
               stream, x, sums, grid, shape.size(), units, gradient);
      });
}

// Whether flat.h serves this activation: short rows that no vector fits, in memory that vectors do.
template <typename scalar_t>
bool takes_flat(const Activation& shape, bool aligned) {
  return aligned && !shape.channels_last && !std::is_same_v<scalar_t, double> &&
         shape.size() % kVector<scalar_t> != 0 && shape.size() <= kMaxFlatSize &&
         shape.channels <= kMaxFlatChannels;
}

template <typename scalar_t>
FlatGrid flat_grid(const Activation& shape) {
  constexpr int V = kVector<scalar_t>;
  const int size = static_cast<int>(shape.size());
  const int most = std::min(kMaxFlatRows, kFlatBytes / static_cast<int>(sizeof(scalar_t)) / size);
  const int64_t fair = ceil_div<int64_t>(shape.rows(), kTargetBlocks);
  const int64_t runs = std::clamp<int64_t>(ceil_div<int64_t>(fair, V), 1, most / V);
  return {shape.rows(), static_cast<unsigned>(shape.channels), size, static_cast<int>(runs) * V};
}

inline dim3 flat_blocks(const FlatGrid& grid) {
  return dim3(static_cast<unsigned>(ceil_div<int64_t>(grid.rows, grid.rows_per_block)));
}

template <typename scalar_t, typename Epilogue>
void launch_flat(const Activation& shape, const scalar_t* x, double* mean, double* m2,
                 const Epilogue& epilogue, cudaStream_t stream) {
  if constexpr (!std::is_same_v<scalar_t, double>) {
    const FlatGrid grid = flat_grid<scalar_t>(shape);
    const auto with_lanes = [&]<int kLanes>() {
      launch(&flat_moments_kernel<scalar_t, kVector<scalar_t>, kLanes, Epilogue>, flat_blocks(grid),
             dim3(kFlatThreads), 0, stream, x, mean, m2, grid, epilogue);
    };
    if (grid.size <= 8 * kFlatUnits)
      with_lanes.template operator()<8>();
    else
      with_lanes.template operator()<kWarp>();
  }
}

template <typename scalar_t, typename Map>
void launch_flat_map(const Activation& shape, const scalar_t* x, scalar_t* out, const Map& map,
                     cudaStream_t stream) {
  if constexpr (!std::is_same_v<scalar_t, double>) {
    const FlatGrid grid = flat_grid<scalar_t>(shape);
    launch(&flat_map_kernel<scalar_t, kVector<scalar_t>, Map>, flat_blocks(grid),
           dim3(kFlatThreads), 0, stream, x, out, grid, map);
  }
}

template <int V, typename scalar_t, typename Pixels, typename Epilogue>
void launch_pixels(const Activation& shape, const Pixels& pixels, const scalar_t* x, double* mean,
                   double* m2, void* scratch, const Epilogue& epilogue, cudaStream_t stream) {
  constexpr int kUnits = units_in_registers<Pixels>(V, Epilogue::kStreams);
  const PixelPlan plan = plan_pixels(shape, pixels, V, kUnits, kSplitPixels);
  const SplitParts parts = split_parts(plan.grid, scratch);
  launch(&pixel_moments_kernel<scalar_t, V, Pixels, kUnits, Epilogue>, plan.blocks, plan.threads, 0,
         stream, x, mean, m2, parts, plan.grid, pixels, epilogue);
  if (plan.grid.splits == 1) return;
  launch(&merge_splits_kernel,
         dim3(static_cast<unsigned>(ceil_div<int64_t>(shape.rows(), kPixelThreads))),
         dim3(kPixelThreads), 0, stream, mean, m2, parts, plan.grid.splits, shape.rows());
}

template <int V, typename scalar_t, typename Pixels, typename Map>
void launch_pixel_map(const Activation& shape, const Pixels& pixels, const scalar_t* x,
                      scalar_t* out, const Map& map, cudaStream_t stream) {
  constexpr int kUnits = units_in_registers<Pixels>(V, Map::kStreams);
  const PixelPlan plan = plan_pixels(shape, pixels, V, kUnits, kMapPixels);
  launch(&pixel_map_kernel<scalar_t, V, Pixels, kUnits, Map>, plan.blocks, plan.threads, 0, stream,
         x, out, plan.grid, pixels, map);
}

// Returns into how many parts each plane was cut.
template <int V, typename scalar_t, typename Pixels, typename Gradient>
int launch_pixel_sums(const Activation& shape, const Pixels& pixels, const scalar_t* x,
                      double* sums, const Gradient& gradient, cudaStream_t stream) {
  constexpr int kUnits = units_in_registers<Pixels>(V, Gradient::kStreams);
  const PixelPlan plan = plan_pixels(shape, pixels, V, kUnits, kSplitPixels);
  launch(&pixel_sums_kernel<scalar_t, V, Pixels, kUnits, Gradient>, plan.blocks, plan.threads, 0,
         stream, x, sums, plan.grid, pixels, gradient);
  return plan.grid.splits;
}

// Calls body.template operator()<V>(): V is the widest vector that fits the run of neighbours and
// the pointers, 1 where none does and for float64, which is there for checks and not for speed.
template <typename scalar_t, typename Body>
void for_vector(bool fits, const Body& body) {
  constexpr int kWide = std::is_same_v<scalar_t, double> ? 1 : kVector<scalar_t>;
  if (kWide > 1 && fits) return body.template operator()<kWide>();
  return body.template operator()<1>();
}

}  // namespace ltdd::cuda
