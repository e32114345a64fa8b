#pragma once

// The problem of align_loss as its kernels see it, its scratch, and its layers by chunks.

#include <algorithm>
#include <limits>

#include "ops.h"
#include "platform.h"

namespace ltdd::cuda {

inline constexpr int kTile = kWarp;    // channels of a block
inline constexpr int kLines = 8;       // warps of a block
inline constexpr int kRounds = 4;      // samples per thread in the last kernel
inline constexpr int kMaxLayers = 40;  // what fits beside a Problem in 4 KiB of kernel parameters
#ifdef LTDD_CUDA_EMULATION             // where small problems are to take every way
inline constexpr int64_t kGapBytes = 12 << 10, kMostSquares = 24;
#else
inline constexpr int64_t kGapBytes = 32 << 20;
inline constexpr int64_t kMostSquares = 8192;  // that one block adds up to the loss
#endif

struct LayerEntry {
  const void *mean, *m2, *global_mean, *global_var, *class_mean, *class_var;
  void *grad_mean, *grad_m2;
  double size, weight;
  int channels;
  int tile_begin;  // first block of the layer in this chunk, and its place in the scratch
  int tiles;
};

struct LayerTable {
  LayerEntry layer[kMaxLayers];
  int count;
  bool first, last;  // of the chunks
};

// What all launches share. G groups; T tiles and L layers at most in a chunk.
struct Problem {
  const int64_t* labels;
  int64_t images, classes;
  int64_t groups;
  int tiles;
  bool double_targets, groups_by_sample;
  double class_weight;
  double not_a_number;  // the loss of labels that are out of range

  double* squares;           // (2, G, T)
  double* terms;             // (G, L), only if they are closed apart
  double* total;             // the loss of the chunks so far
  int64_t* group_rows;       // (G); 0 for a group without samples
  int64_t* group_of;         // (N), only if groups_by_sample
  void *mean_gap, *var_gap;  // (G, T * kTile) of the row type

  __host__ __device__ bool closes_apart() const { return groups * tiles > kMostSquares; }
};
static_assert(sizeof(LayerTable) + sizeof(Problem) + sizeof(void*) <= 4096);

// Cuts the scratch into its parts, or only measures it when base is null.
inline size_t lay_out(Problem& p, char* base, size_t row_bytes) {
  size_t used = 0;
  const auto take = [&](auto*& pointer, size_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
    used += (bytes + 15) / 16 * 16;
  };
  const size_t groups = static_cast<size_t>(p.groups);
  take(p.squares, 2 * groups * p.tiles * sizeof(double));
  take(p.terms, p.closes_apart() ? groups * kMaxLayers * sizeof(double) : 0);
  take(p.total, sizeof(double));
  take(p.group_rows, groups * sizeof(int64_t));
  take(p.group_of, p.groups_by_sample ? static_cast<size_t>(p.images) * sizeof(int64_t) : 0);
  take(p.mean_gap, groups * p.tiles * kTile * row_bytes);
  take(p.var_gap, groups * p.tiles * kTile * row_bytes);
  return used;
}

// At least one, so that every launch has a block even where a layer has no channel.
inline int tiles_of(const AlignLayer& layer) {
  return static_cast<int>(std::max<int64_t>(1, ceil_div<int64_t>(layer.channels, kTile)));
}

// Calls body(table, tiles) for each chunk of layers, and returns the most tiles of any.
template <typename Body>
int for_chunks(const AlignLayer* layers, int count, int64_t groups, const Body& body) {
  const int64_t most_tiles = kGapBytes / (groups * 2 * kTile * static_cast<int>(sizeof(double)));
  int most = 0;
  for (int first = 0; first < count;) {
    LayerTable table{};
    int tiles = 0;
    for (int l = first; l < count && table.count < kMaxLayers; ++l) {
      const AlignLayer& from = layers[l];
      const int own = tiles_of(from);
      if (table.count > 0 && tiles + own > most_tiles) break;
      table.layer[table.count++] = {from.mean,
                                    from.m2,
                                    from.global_mean,
                                    from.global_var,
                                    from.class_mean,
                                    from.class_var,
                                    from.grad_mean,
                                    from.grad_m2,
                                    from.size,
                                    from.weight,
                                    static_cast<int>(from.channels),
                                    tiles,
                                    own};
      tiles += own;
    }
    table.first = first == 0;
    first += table.count;
    table.last = first == count;
    most = std::max(most, tiles);
    body(table, tiles);
  }
  return most;
}

inline Problem make_problem(const AlignLayer* layers, int count, int64_t images, int64_t classes,
                            double class_weight) {
  Problem p{};
  p.images = images;
  p.classes = classes;
  p.class_weight = class_weight;
  p.not_a_number = std::numeric_limits<double>::quiet_NaN();
  p.groups = 1 + (class_weight != 0.0 ? std::min(images, classes) : 0);
  p.groups_by_sample = classes > images;
  p.double_targets = layers[0].double_targets;
  p.tiles = for_chunks(layers, count, p.groups, [](const LayerTable&, int) {});
  return p;
}

}  // namespace ltdd::cuda
