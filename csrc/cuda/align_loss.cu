// align_loss: the alignment objective of all layers, global and class-wise, with its gradient.
//
//   loss = sum_l w_l (|m_l - gm_l| + |v_l - gv_l|)
//        + class_weight mean_k sum_l w_l (|m_lk - cm_lk| + |v_lk - cv_lk|),  k the classes present
//
// Group 0 is the whole batch, the others are classes. Layers go by chunks: up to kMaxLayers, whose
// pointers travel in the kernel's parameters, and no more than kGapBytes of scratch hold. Two
// launches a chunk, three where there are very many groups and channels:
//   measure: block (group, 32 channels) -> gaps to the targets and their sums of squares;
//   close:   warp (group, layer)        -> terms of the loss, where one block would be long at it;
//   spread:  block (samples, 32 channels) -> the gradient of every row, and once the loss.
// A class gets a group by its label, or, with more classes than samples, by its first sample, so
// the host never needs to know which classes are present. Arithmetic is double, sums are in fixed
// order, no atomics. Traffic: the rows three times and their gradients once.

#include "../common/alignment.h"
#include "align_problem.h"
#include "label_groups.h"

namespace ltdd::cuda {
namespace {

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
  if (table.first && blockIdx.y == 0 && threadIdx.y == 0) {
    const int64_t first = g > 0 && p.groups_by_sample ? first_member(p.labels, g, group.label) : 0;
    if (threadIdx.x == 0) p.group_rows[g] = group.rows;
    if (threadIdx.x == 0 && g > 0 && p.groups_by_sample) p.group_of[g - 1] = first + 1;
  }
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
    const int64_t slot = (g * p.tiles + layer.tile_begin) * kTile + channel;
    static_cast<row_t*>(p.mean_gap)[slot] = static_cast<row_t>(mean_gap);
    static_cast<row_t*>(p.var_gap)[slot] = static_cast<row_t>(var_gap);
  }
  const double mean_square = sum_over_lanes<kWarp>(mean_gap * mean_gap);
  const double var_square = sum_over_lanes<kWarp>(var_gap * var_gap);
  if (threadIdx.x == 0) {
    const int64_t at = g * p.tiles + layer.tile_begin + tile;
    p.squares[at] = mean_square;
    p.squares[p.groups * p.tiles + at] = var_square;
  }
}

// Lengths of the gaps of a group in a layer.
struct Norms {
  double mean, var;
};

// The sums of squares of lanes first, first + step, ...
inline __device__ Norms add_squares(const Problem& p, const LayerEntry& layer, int64_t g, int first,
                                    int step) {
  const double* squares = p.squares + g * p.tiles + layer.tile_begin;
  Norms sums{0, 0};
  for (int t = first; t < layer.tiles; t += step) {
    sums.mean += squares[t];
    sums.var += squares[p.groups * p.tiles + t];
  }
  return sums;
}

// Called by whole warps.
inline __device__ Norms find_norms(const Problem& p, const LayerEntry& layer, int64_t g) {
  const Norms sums = add_squares(p, layer, g, lane_id(), kWarp);
  return {sqrt(sum_over_lanes<kWarp>(sums.mean)), sqrt(sum_over_lanes<kWarp>(sums.var))};
}

inline __device__ bool is_used(const Problem& p, int64_t g) {
  return g == 0 || p.group_rows[g] > 0;
}

__global__ void __launch_bounds__(kWarp)
    close_kernel(const __grid_constant__ LayerTable table, const __grid_constant__ Problem p) {
  const int64_t g = blockIdx.x;
  const LayerEntry& layer = table.layer[blockIdx.y];
  double term = 0;
  if (is_used(p, g)) {
    const Norms norms = find_norms(p, layer, g);
    term = layer.weight * (norms.mean + norms.var);
  }
  if (threadIdx.x == 0) p.terms[g * table.count + blockIdx.y] = term;
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

// Adds the terms of this chunk to those before, by one block; thread 0 gets the sum.
inline __device__ double add_terms(const LayerTable& table, const Problem& p, double class_weight) {
  __shared__ double of_line[kLines];
  const int thread = static_cast<int>(threadIdx.y) * kTile + static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t i = thread; i < p.groups * table.count; i += kTile * kLines) {
    const int64_t g = i / table.count;
    double term = 0;
    if (p.closes_apart()) {
      term = p.terms[i];
    } else if (is_used(p, g)) {
      const LayerEntry& layer = table.layer[i % table.count];
      const Norms squares = add_squares(p, layer, g, 0, 1);
      term = layer.weight * (sqrt(squares.mean) + sqrt(squares.var));
    }
    sum += g == 0 ? term : class_weight * term;
  }
  sum = sum_over_lanes<kWarp>(sum);
  if (threadIdx.x == 0) of_line[threadIdx.y] = sum;
  __syncthreads();
  sum = table.first ? 0 : *p.total;
  for (int line = 0; line < kLines; ++line) sum += of_line[line];
  return sum;
}

template <typename row_t>
__global__ void __launch_bounds__(kTile* kLines)
    spread_kernel(const __grid_constant__ LayerTable table, const __grid_constant__ Problem p,
                  row_t* __restrict__ loss) {
  const double class_weight = weight_of_class(p);
  if (blockIdx.x == 0 && blockIdx.y == 0) {
    const double sum = add_terms(table, p, class_weight);
    const bool stray = p.groups > 1 && any_stray_label(p.labels, p.images, p.classes);
    __syncthreads();  // all have read the total
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      *p.total = sum;
      if (table.last) *loss = static_cast<row_t>(stray ? p.not_a_number : sum);
    }
  }

  const LayerEntry& layer = entry_of_tile(table, static_cast<int>(blockIdx.y));
  const int tile = static_cast<int>(blockIdx.y) - layer.tile_begin;
  const int channel = tile * kTile + static_cast<int>(threadIdx.x);
  const bool active = channel < layer.channels;  // the others stay: norms need whole warps
  const int64_t slot_begin = int64_t(layer.tile_begin) * kTile + (active ? channel : 0);
  const row_t* mean_gap = static_cast<const row_t*>(p.mean_gap) + slot_begin;
  const row_t* var_gap = static_cast<const row_t*>(p.var_gap) + slot_begin;

  // What a group adds to the gradient of its rows: gaps over norms, the rows shared among.
  struct Pull {
    double mean, var, group_mean;
  };
  const auto pull_of = [&](int64_t g, double weight, int64_t label) -> Pull {
    const Norms norms = find_norms(p, layer, g);
    const double share = weight * layer.weight / static_cast<double>(p.group_rows[g]);
    const double gap = static_cast<double>(mean_gap[g * p.tiles * kTile]);
    const double to = target(g == 0 ? layer.global_mean : layer.class_mean, p.double_targets,
                             label * layer.channels + (active ? channel : 0));
    return {norm_gradient(share, gap, norms.mean),
            norm_gradient(share, static_cast<double>(var_gap[g * p.tiles * kTile]), norms.var),
            gap + to};
  };
  if (int64_t(blockIdx.x) * kRounds * kLines + threadIdx.y >= p.images) return;
  const Pull whole = pull_of(0, 1.0, 0);
  for (int round = 0; round < kRounds; ++round) {
    const int64_t n = (int64_t(blockIdx.x) * kRounds + round) * kLines + threadIdx.y;
    if (n >= p.images) return;
    const int64_t row = n * layer.channels + (active ? channel : 0);
    const double row_mean = static_cast<double>(static_cast<const row_t*>(layer.mean)[row]);
    // The shares hold 1 / rows already, hence groups of one row here.
    RowGradient gradient =
        row_gradient(whole.mean, whole.var, row_mean, whole.group_mean, 1.0, layer.size);
    const int64_t label = p.labels[n];
    if (p.groups > 1 && label >= 0 && label < p.classes) {
      const int64_t g = p.groups_by_sample ? p.group_of[n] : label + 1;
      const Pull own = pull_of(g, class_weight, label);
      const RowGradient more =
          row_gradient(own.mean, own.var, row_mean, own.group_mean, 1.0, layer.size);
      gradient.mean += more.mean;
      gradient.m2 += more.m2;
    }
    if (!active) continue;
    static_cast<row_t*>(layer.grad_mean)[row] = static_cast<row_t>(gradient.mean);
    static_cast<row_t*>(layer.grad_m2)[row] = static_cast<row_t>(gradient.m2);
  }
}

template <typename row_t>
void run(const AlignLayer* layers, int count, const Problem& p, row_t* loss, cudaStream_t stream) {
  const unsigned groups = static_cast<unsigned>(p.groups);
  const unsigned samples =
      static_cast<unsigned>(std::max<int64_t>(1, ceil_div<int64_t>(p.images, kLines * kRounds)));
  const dim3 threads(kTile, kLines);
  for_chunks(layers, count, p.groups, [&](const LayerTable& table, int tiles) {
    const unsigned columns = static_cast<unsigned>(tiles);
    launch(&measure_kernel<row_t>, dim3(groups, columns), threads, 0, stream, table, p);
    if (p.closes_apart())
      launch(&close_kernel, dim3(groups, static_cast<unsigned>(table.count)), dim3(kWarp), 0,
             stream, table, p);
    launch(&spread_kernel<row_t>, dim3(samples, columns), threads, 0, stream, table, p, loss);
  });
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
    run(layers, count, p, static_cast<double*>(loss), on);
  else
    run(layers, count, p, static_cast<float*>(loss), on);
}

}  // namespace ltdd::cuda
