// align_loss: the alignment objective of all layers, global and class-wise, with its gradient.
//
//   loss = sum_l w_l (|m_l - gm_l| + |v_l - gv_l|)
//        + class_weight mean_k sum_l w_l (|m_lk - cm_lk| + |v_lk - cv_lk|),  k the classes present
//
// Group 0 is the whole batch, the others are classes. Three launches for up to kMaxLayers layers,
// whose pointers travel in the kernel's parameters:
//   measure: block (group, 32 channels) -> gaps to the targets and their sums of squares;
//   close:   block (group, layer)       -> norms, terms of the loss, factors of the gradient;
//   spread:  block (samples, 32 channels) -> the gradient of every row, and once the loss.
// A class gets a group by its label, or, with more classes than samples, by its first sample, so
// the host never needs to know which classes are present. Arithmetic is double, sums are in fixed
// order, no atomics. Traffic: the rows three times and their gradients once.

#include <algorithm>
#include <limits>

#include "../common/alignment.h"
#include "label_groups.h"
#include "ops.h"

namespace ltdd::cuda {
namespace {

constexpr int kTile = kWarp;    // channels of a block
constexpr int kLines = 8;       // warps of a block
constexpr int kRounds = 4;      // samples per thread in the last kernel
constexpr int kMaxLayers = 40;  // what fits beside a Problem in 4 KiB of kernel parameters

struct LayerEntry {
  const void *mean, *m2, *global_mean, *global_var, *class_mean, *class_var;
  void *grad_mean, *grad_m2;
  double size, weight;
  int channels;
  int channel_begin;  // in the scratch, where all layers lie side by side
  int tile_begin;     // first block of the layer in this launch
  int tiles;
};

struct LayerTable {
  LayerEntry layer[kMaxLayers];
  int count;
  int first;  // layers before this launch
};

// What all launches share. G groups, C channels and L layers in total.
struct Problem {
  const int64_t* labels;
  int64_t images, classes;
  int64_t groups;
  int64_t channels;
  int layers, tiles;
  bool double_targets, groups_by_sample;
  double class_weight;
  double not_a_number;  // the loss of labels that are out of range

  double* squares;           // (2, G, tiles)
  double* factors;           // (2, G, L): d loss / d gap = factor * gap, per row of the group
  double* terms;             // (G, L)
  int64_t* group_rows;       // (G); 0 for a group without samples
  int64_t* group_of;         // (N), only if groups_by_sample
  void *mean_gap, *var_gap;  // (G, C) of the row type
};
static_assert(sizeof(LayerTable) + sizeof(Problem) + sizeof(void*) <= 4096);

struct Group {
  int64_t label;  // -1: the whole batch
  int64_t rows;
};

// Called by whole warps. rows is 0 where the group is not to be computed.
inline __device__ Group find_group(const Problem& p, int64_t g) {
  if (g == 0) return {-1, p.images};
  int64_t label = g - 1;
  if (p.groups_by_sample) {
    label = p.labels[g - 1];
    if (label < 0 || label >= p.classes) return {label, 0};
    if (first_member(p.labels, g, label) != g - 1) return {label, 0};
  }
  return {label, count_members(p.labels, p.images, label)};
}

// Calls body(sample) for this warp's share of the group, in order.
template <typename Body>
__device__ void for_group(const Problem& p, const Group& group, int line, const Body& body) {
  if (group.label < 0) {
    for (int64_t n = line; n < p.images; n += kLines) body(n);
    return;
  }
  int turn = 0;
  for_members(p.labels, p.images, group.label, [&](int64_t n) {
    if (turn == line) body(n);
    turn = turn + 1 == kLines ? 0 : turn + 1;
  });
}

inline __device__ const LayerEntry& entry_of_tile(const LayerTable& table, int tile) {
  int l = 0;
  while (l + 1 < table.count && table.layer[l + 1].tile_begin <= tile) ++l;
  return table.layer[l];
}

inline __device__ double target(const void* values, bool is_double, int64_t i) {
  return is_double ? static_cast<const double*>(values)[i]
                   : static_cast<double>(static_cast<const float*>(values)[i]);
}

// Sum over the lines of a block, in order; every thread gets the sum of its column.
inline __device__ double sum_lines(double (&shared)[kLines][kTile], double value) {
  __syncthreads();  // the last sum has been read
  shared[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kLines; ++i) sum += shared[i][threadIdx.x];
  return sum;
}

template <typename row_t>
__global__ void __launch_bounds__(kTile* kLines)
    measure_kernel(const __grid_constant__ LayerTable table, const __grid_constant__ Problem p) {
  __shared__ double shared[kLines][kTile];
  const int64_t g = blockIdx.x;
  const Group group = find_group(p, g);
  if (g > 0 && group.rows == 0) return;
  const LayerEntry& layer = entry_of_tile(table, static_cast<int>(blockIdx.y));
  const int tile = static_cast<int>(blockIdx.y) - layer.tile_begin;
  const int channel = tile * kTile + static_cast<int>(threadIdx.x);
  const bool active = channel < layer.channels;
  const int line = static_cast<int>(threadIdx.y);
  const row_t* means = static_cast<const row_t*>(layer.mean) + channel;
  const row_t* m2s = static_cast<const row_t*>(layer.m2) + channel;

  double sum = 0, sum_m2 = 0;
  for_group(p, group, line, [&](int64_t n) {
    if (!active) return;
    sum += static_cast<double>(means[n * layer.channels]);
    sum_m2 += static_cast<double>(m2s[n * layer.channels]);
  });
  const double rows = static_cast<double>(group.rows);
  const double mean = sum_lines(shared, sum) / rows;
  const double all_m2 = sum_lines(shared, sum_m2);
  double gap2 = 0;
  for_group(p, group, line, [&](int64_t n) {
    if (!active) return;
    const double gap = static_cast<double>(means[n * layer.channels]) - mean;
    gap2 += gap * gap;
  });
  const double var = group_var(all_m2, sum_lines(shared, gap2), rows, layer.size);
  if (line != 0) return;

  double mean_gap = 0, var_gap = 0;
  if (active) {
    const int64_t at = (group.label < 0 ? 0 : group.label * layer.channels) + channel;
    const bool whole = group.label < 0;
    mean_gap = mean - target(whole ? layer.global_mean : layer.class_mean, p.double_targets, at);
    var_gap = var - target(whole ? layer.global_var : layer.class_var, p.double_targets, at);
    const int64_t slot = g * p.channels + layer.channel_begin + channel;
    static_cast<row_t*>(p.mean_gap)[slot] = static_cast<row_t>(mean_gap);
    static_cast<row_t*>(p.var_gap)[slot] = static_cast<row_t>(var_gap);
  }
  const double mean_square = sum_over_lanes<kWarp>(mean_gap * mean_gap);
  const double var_square = sum_over_lanes<kWarp>(var_gap * var_gap);
  if (threadIdx.x == 0) {
    const int64_t at = g * p.tiles + layer.channel_begin / kTile + tile;
    p.squares[at] = mean_square;
    p.squares[p.groups * p.tiles + at] = var_square;
  }
}

__global__ void __launch_bounds__(kWarp)
    close_kernel(const __grid_constant__ LayerTable table, const __grid_constant__ Problem p) {
  const int64_t g = blockIdx.x;
  const LayerEntry& layer = table.layer[blockIdx.y];
  const int l = table.first + static_cast<int>(blockIdx.y);
  const Group group = find_group(p, g);
  const int lane = static_cast<int>(threadIdx.x);
  if (l == 0 && lane == 0) p.group_rows[g] = group.rows;
  if (l == 0 && g > 0 && p.groups_by_sample) {
    const int64_t first = first_member(p.labels, g, group.label);
    if (lane == 0) p.group_of[g - 1] = first + 1;
  }
  double norm[2];
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const double* squares =
        p.squares + (which * p.groups + g) * p.tiles + layer.channel_begin / kTile;
    double sum = 0;
    if (g == 0 || group.rows > 0)
      for (int t = lane; t < layer.tiles; t += kWarp) sum += squares[t];
    norm[which] = sqrt(sum_over_lanes<kWarp>(sum));
  }
  if (lane != 0) return;
  const int64_t at = g * p.layers + l;
  const double share = layer.weight / static_cast<double>(group.rows);
  const bool used = g == 0 || group.rows > 0;
  p.terms[at] = used ? layer.weight * (norm[0] + norm[1]) : 0;
  p.factors[at] = used ? norm_gradient(share, 1.0, norm[0]) : 0;
  p.factors[p.groups * p.layers + at] = used ? norm_gradient(share, 1.0, norm[1]) : 0;
}

// class_weight over the number of classes present; called by whole warps.
inline __device__ double weight_of_class(const Problem& p) {
  int64_t present = 0;
  for (int64_t base = 1; base < p.groups; base += kWarp) {
    const int64_t g = base + lane_id();
    present += __popc(__ballot_sync(kFullWarp, g < p.groups && p.group_rows[g] > 0));
  }
  return present > 0 ? p.class_weight / static_cast<double>(present) : 0.0;
}

template <typename row_t>
__global__ void __launch_bounds__(kTile* kLines)
    spread_kernel(const __grid_constant__ LayerTable table, const __grid_constant__ Problem p,
                  row_t* __restrict__ loss) {
  const double class_weight = weight_of_class(p);
  const LayerEntry& layer = entry_of_tile(table, static_cast<int>(blockIdx.y));
  const int l = table.first + static_cast<int>(&layer - table.layer);

  if (table.first == 0 && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.y == 0) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < p.groups * p.layers; i += kWarp)
      sum += p.terms[i] * (i < p.layers ? 1.0 : class_weight);
    sum = sum_over_lanes<kWarp>(sum);
    if (p.groups > 1 && any_stray_label(p.labels, p.images, p.classes)) sum = p.not_a_number;
    if (threadIdx.x == 0) *loss = static_cast<row_t>(sum);
  }

  const int channel =
      (static_cast<int>(blockIdx.y) - layer.tile_begin) * kTile + static_cast<int>(threadIdx.x);
  if (channel >= layer.channels) return;
  const row_t* mean_gap = static_cast<const row_t*>(p.mean_gap) + layer.channel_begin + channel;
  const row_t* var_gap = static_cast<const row_t*>(p.var_gap) + layer.channel_begin + channel;
  const double* mean_factor = p.factors + l;
  const double* var_factor = p.factors + p.groups * p.layers + l;

  // The factors hold 1 / rows already, hence groups of one row here.
  const auto from_group = [&](int64_t g, double weight, double row_mean) {
    const bool whole = g == 0;
    const int64_t slot = g * p.channels;
    const int64_t label = whole ? 0 : p.groups_by_sample ? p.labels[g - 1] : g - 1;
    const double gap = static_cast<double>(mean_gap[slot]);
    const double group_mean = gap + target(whole ? layer.global_mean : layer.class_mean,
                                           p.double_targets, label * layer.channels + channel);
    return row_gradient(weight * mean_factor[g * p.layers] * gap,
                        weight * var_factor[g * p.layers] * static_cast<double>(var_gap[slot]),
                        row_mean, group_mean, 1.0, layer.size);
  };
  for (int round = 0; round < kRounds; ++round) {
    const int64_t n = (int64_t(blockIdx.x) * kRounds + round) * kLines + threadIdx.y;
    if (n >= p.images) return;
    const int64_t row = n * layer.channels + channel;
    const double row_mean = static_cast<double>(static_cast<const row_t*>(layer.mean)[row]);
    RowGradient gradient = from_group(0, 1.0, row_mean);
    const int64_t label = p.labels[n];
    if (p.groups > 1 && label >= 0 && label < p.classes) {
      const RowGradient own =
          from_group(p.groups_by_sample ? p.group_of[n] : label + 1, class_weight, row_mean);
      gradient.mean += own.mean;
      gradient.m2 += own.m2;
    }
    static_cast<row_t*>(layer.grad_mean)[row] = static_cast<row_t>(gradient.mean);
    static_cast<row_t*>(layer.grad_m2)[row] = static_cast<row_t>(gradient.m2);
  }
}

// Cuts the scratch into its parts, or only measures it when base is null.
size_t lay_out(Problem& p, char* base, size_t row_bytes) {
  size_t used = 0;
  const auto take = [&](auto*& pointer, size_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
    used += (bytes + 15) / 16 * 16;
  };
  const size_t groups = static_cast<size_t>(p.groups);
  take(p.squares, 2 * groups * p.tiles * sizeof(double));
  take(p.factors, 2 * groups * p.layers * sizeof(double));
  take(p.terms, groups * p.layers * sizeof(double));
  take(p.group_rows, groups * sizeof(int64_t));
  take(p.group_of, static_cast<size_t>(p.images) * sizeof(int64_t));
  take(p.mean_gap, groups * p.channels * row_bytes);
  take(p.var_gap, groups * p.channels * row_bytes);
  return used;
}

// At least one, so that every launch has a block even where a layer has no channel.
int tiles_of(const AlignLayer& layer) {
  return static_cast<int>(std::max<int64_t>(1, ceil_div<int64_t>(layer.channels, kTile)));
}

Problem make_problem(const AlignLayer* layers, int count, int64_t images, int64_t classes,
                     double class_weight) {
  Problem p{};
  p.images = images;
  p.classes = classes;
  p.class_weight = class_weight;
  p.not_a_number = std::numeric_limits<double>::quiet_NaN();
  p.groups = 1 + (class_weight != 0.0 ? std::min(images, classes) : 0);
  p.groups_by_sample = classes > images;
  p.layers = count;
  p.double_targets = layers[0].double_targets;
  for (int l = 0; l < count; ++l) p.tiles += tiles_of(layers[l]);
  p.channels = int64_t(p.tiles) * kTile;
  return p;
}

template <typename row_t>
void run(const AlignLayer* layers, const Problem& p, row_t* loss, cudaStream_t stream) {
  // Each step over all layers before the next step: the loss needs the norms of every layer.
  for (int step = 0; step < 3; ++step) {
    int channel_begin = 0;
    for (int first = 0; first < p.layers; first += kMaxLayers) {
      LayerTable table{};
      table.first = first;
      table.count = std::min(kMaxLayers, p.layers - first);
      int tiles = 0;
      for (int l = 0; l < table.count; ++l) {
        const AlignLayer& from = layers[first + l];
        const int own = tiles_of(from);
        table.layer[l] = {from.mean,
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
                          channel_begin,
                          tiles,
                          own};
        channel_begin += own * kTile;
        tiles += own;
      }
      const unsigned groups = static_cast<unsigned>(p.groups);
      const dim3 threads(kTile, kLines);
      if (step == 0)
        launch(&measure_kernel<row_t>, dim3(groups, static_cast<unsigned>(tiles)), threads, 0,
               stream, table, p);
      else if (step == 1)
        launch(&close_kernel, dim3(groups, static_cast<unsigned>(table.count)), dim3(kWarp), 0,
               stream, table, p);
      else
        launch(&spread_kernel<row_t>,
               dim3(static_cast<unsigned>(
                        std::max<int64_t>(1, ceil_div<int64_t>(p.images, kLines * kRounds))),
                    static_cast<unsigned>(tiles)),
               threads, 0, stream, table, p, loss);
    }
  }
  check_launch("align_loss");
}

}  // namespace

size_t align_loss_scratch_bytes(const AlignLayer* layers, int count, int64_t images,
                                int64_t classes, double class_weight) {
  Problem p = make_problem(layers, count, images, classes, class_weight);
  return lay_out(p, nullptr, sizeof(double));
}

void align_loss(const AlignLayer* layers, int count, Type row_type, const int64_t* labels,
                int64_t images, int64_t classes, double class_weight, void* loss, void* scratch,
                Stream stream) {
  Problem p = make_problem(layers, count, images, classes, class_weight);
  p.labels = labels;
  const bool is_double = row_type == Type::kFloat64;
  lay_out(p, static_cast<char*>(scratch), is_double ? sizeof(double) : sizeof(float));
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (is_double)
    run(layers, p, static_cast<double*>(loss), on);
  else
    run(layers, p, static_cast<float*>(loss), on);
}

}  // namespace ltdd::cuda
