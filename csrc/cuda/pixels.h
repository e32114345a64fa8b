#pragma once

// Row moments in NHWC, where the C channels of a pixel lie together.
//
// A thread owns V channels of one image (one 16-byte vector; V = 1 where C is not a multiple) and
// walks down the pixels: a tile of units in registers, an exact two-pass over the tile, a Chan
// merge into the running moments, which are kept about a center of the thread's own. The threads of
// a block that share the channels are merged through shared memory in double and in a fixed order.
// Large planes are cut: a block takes one of `splits` parts, and merge_splits_kernel puts the parts
// together. x is read once; no atomics.

#include "../common/moments.h"
#include "units.h"

namespace ltdd::cuda {

inline constexpr int kPixelThreads = 256;
inline constexpr int kPixelBlocks = 2;  // on a multiprocessor; see kRowBlocks

// blockDim = (threads along channels, threads along pixels); gridDim = (images * splits, tiles).
struct PixelGrid {
  int64_t images;
  int64_t channels;
  int splits;
  int share;  // units per split
};

// Where this thread works: image, first channel, units [begin, end) of the plane.
template <int V>
struct PixelSeat {
  int64_t image;
  int64_t channel;
  int split, begin, end;
  bool active;

  __device__ PixelSeat(const PixelGrid& grid, int units) {
    image = blockIdx.x / static_cast<unsigned>(grid.splits);
    split = static_cast<int>(blockIdx.x % static_cast<unsigned>(grid.splits));
    channel = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * V;
    begin = split * grid.share;
    end = units - begin < grid.share ? units : begin + grid.share;
    active = channel < grid.channels;
  }
};

// Moments of V channels, one count for all of them. The center is the pivot until the first tile
// gives a better one, and mean is what the mean has beyond it.
template <int V, typename acc_t>
struct ChannelMoments {
  acc_t count = 0;
  acc_t center[V] = {};
  acc_t mean[V] = {};
  acc_t m2[V] = {};
};

template <typename scalar_t, typename Pixels, int V, int kUnits>
__device__ __forceinline__ void add_tile(
    ChannelMoments<V, acc_type<scalar_t>>& running,
    const acc_type<scalar_t> (&values)[kUnits][Pixels::kElements][V],
    const unsigned (&mask)[kUnits]) {
  using acc_t = acc_type<scalar_t>;
  int elements = 0;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) elements += __popc(mask[u]);
  const acc_t tile = static_cast<acc_t>(elements);
  const acc_t inverse = acc_t(1) / tile;
  const acc_t count = running.count + tile;
  const acc_t share = tile / count;
  const acc_t weight = running.count * share;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    acc_t sum = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int e = 0; e < Pixels::kElements; ++e)
        if (mask[u] >> e & 1u) sum += values[u][e][v] - running.center[v];
    const acc_t center = center_from<scalar_t>(running.center[v] + sum * inverse);
    acc_t gaps = 0, squares = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int e = 0; e < Pixels::kElements; ++e)
        if (mask[u] >> e & 1u) {
          const acc_t gap = values[u][e][v] - center;
          gaps += gap;
          squares += gap * gap;
        }
    const acc_t rest = rest_of_mean(center, gaps * inverse);
    if (running.count == 0 && is_finite(center)) running.center[v] = center;
    const acc_t delta = (center - running.center[v]) + rest - running.mean[v];
    running.mean[v] += delta * share;
    running.m2[v] += (squares - gaps * rest) + delta * delta * weight;
  }
  running.count = count;
}

// Merges P parts with counts n_p: mean = sum n_p mean_p / n, m2 = sum m2_p + sum n_p (mean_p -
// mean)^2, all means as distances to the first. Two passes instead of P merges: no chain of
// divisions.
template <typename Part>
__device__ __forceinline__ Moments<double> merge_parts(int parts, const Part& part) {
  const double origin = pivot_from(part(0).mean);
  double count = 0, sum = 0;
  for (int p = 0; p < parts; ++p) {
    const Moments<double> found = part(p);
    if (found.count == 0) continue;
    count += found.count;
    sum += found.count * (found.mean - origin);
  }
  const double shift = sum / count;
  double m2 = 0;
  for (int p = 0; p < parts; ++p) {
    const Moments<double> found = part(p);
    if (found.count == 0) continue;
    const double gap = (found.mean - origin) - shift;
    m2 += found.m2 + found.count * gap * gap;
  }
  return {count, origin + shift, m2};
}

// What the blocks of one image leave for merge_splits_kernel; unused (null) when splits == 1.
struct SplitParts {
  double* mean;   // (splits, N, C)
  double* m2;     // (splits, N, C)
  double* count;  // (splits)
};

template <typename scalar_t, int V, typename Pixels, int kUnits, typename Epilogue>
__global__ void __launch_bounds__(kPixelThreads, kPixelBlocks)
    pixel_moments_kernel(const scalar_t* __restrict__ x,  // (N, S, C)
                         double* __restrict__ mean,       // (N, C)
                         double* __restrict__ m2,         // (N, C)
                         SplitParts parts, PixelGrid grid, int64_t size, Pixels pixels,
                         Epilogue epilogue) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kElements = Pixels::kElements;
  __shared__ double means[kPixelThreads * V];
  __shared__ acc_t squares[kPixelThreads * V];
  __shared__ acc_t counts[kPixelThreads];
  const PixelSeat<V> seat(grid, pixels.count);
  const int lines = static_cast<int>(blockDim.y);
  const int line = static_cast<int>(threadIdx.y);
  const int64_t start = seat.image * size * grid.channels + seat.channel;
  const int64_t output_start = seat.image * pixels.outputs() * grid.channels + seat.channel;

  ChannelMoments<V, acc_t> running;
  if (seat.active) {
    load<V>(x + start, running.center);
#pragma unroll
    for (int v = 0; v < V; ++v) running.center[v] = pivot_from(running.center[v]);
    const auto coefficients = epilogue.template channel_coefficients<V>(seat.channel);
    for (int first = seat.begin + line; first < seat.end; first += lines * kUnits) {
      acc_t values[kUnits][kElements][V];
      typename Epilogue::template PixelOperands<kElements, V> operands[kUnits];
      unsigned mask[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int unit = first + u * lines;
        const PixelPosition at = pixels.position(unit);
        mask[u] = unit < seat.end ? at.mask : 0;
#pragma unroll
        for (int e = 0; e < kElements; ++e)
          if (mask[u] >> e & 1u) {
            const int64_t offset = start + (at.first + pixels.step(e)) * grid.channels;
            load<V>(x + offset, values[u][e]);
            epilogue.template load_pixel<V>(offset, e, operands[u]);
          }
      }
      add_tile<scalar_t, Pixels, V, kUnits>(running, values, mask);
      if constexpr (Epilogue::kWrites) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          const int64_t output = pixels.position(first + u * lines).output;
          if (mask[u] != 0 && output >= 0)
            epilogue.template write_pixel<V>(output_start + output * grid.channels, coefficients,
                                             operands[u], values[u]);
        }
      }
    }
  }

  const int width = static_cast<int>(blockDim.x) * V;
  const int slot = static_cast<int>(threadIdx.x) * V;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    means[line * width + slot + v] = double(running.center[v]) + double(running.mean[v]);
    squares[line * width + slot + v] = running.m2[v];
  }
  if (threadIdx.x == 0) counts[line] = running.count;
  __syncthreads();

  // One thread per channel of the block.
  const int thread = line * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  const int threads = lines * static_cast<int>(blockDim.x);
  for (int column = thread; column < width; column += threads) {
    const int64_t channel = int64_t(blockIdx.y) * width + column;
    if (channel >= grid.channels) continue;
    const Moments<double> all = merge_parts(lines, [&](int p) {
      return Moments<double>{double(counts[p]), means[p * width + column],
                             double(squares[p * width + column])};
    });
    const int64_t row = seat.image * grid.channels + channel;
    if (grid.splits == 1) {
      mean[row] = all.mean;
      m2[row] = all.m2;
    } else {
      const int64_t part = int64_t(seat.split) * grid.images * grid.channels + row;
      parts.mean[part] = all.mean;
      parts.m2[part] = all.m2;
      if (row == 0) parts.count[seat.split] = all.count;
    }
  }
}

// Static, since a kernel that is no template cannot be inline.
[[maybe_unused]] static __global__ void __launch_bounds__(kPixelThreads)
    merge_splits_kernel(double* __restrict__ mean,  // (rows)
                        double* __restrict__ m2,    // (rows)
                        SplitParts parts, int splits, int64_t rows) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const Moments<double> all = merge_parts(splits, [&](int p) {
    return Moments<double>{parts.count[p], parts.mean[p * rows + row], parts.m2[p * rows + row]};
  });
  mean[row] = all.mean;
  m2[row] = all.m2;
}

template <typename scalar_t, int V, typename Pixels, int kUnits, typename Gradient>
__global__ void __launch_bounds__(kPixelThreads, kPixelBlocks)
    pixel_gradient_kernel(const scalar_t* __restrict__ x,  // (N, S, C)
                          scalar_t* __restrict__ dx,       // (N, S, C)
                          PixelGrid grid, int64_t size, Pixels pixels, Gradient gradient) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kElements = Pixels::kElements;
  const PixelSeat<V> seat(grid, pixels.count);
  if (!seat.active) return;
  const int lines = static_cast<int>(blockDim.y);
  const int64_t start = seat.image * size * grid.channels + seat.channel;
  const int64_t output_start = seat.image * pixels.outputs() * grid.channels + seat.channel;
  const auto coefficients = gradient.template channel_coefficients<V>(
      seat.image * grid.channels + seat.channel, seat.channel);
  for (int first = seat.begin + static_cast<int>(threadIdx.y); first < seat.end;
       first += lines * kUnits) {
    acc_t values[kUnits][kElements][V];
    typename Gradient::template PixelOperands<kElements, V> operands[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * lines;
      if (unit >= seat.end) continue;
      const PixelPosition at = pixels.position(unit);
      gradient.template load_output<V>(
          at.output < 0 ? -1 : output_start + at.output * grid.channels, operands[u]);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (at.mask >> e & 1u) {
          const int64_t offset = start + (at.first + pixels.step(e)) * grid.channels;
          load<V>(x + offset, values[u][e]);
          gradient.template load_pixel<V>(offset, e, operands[u]);
        }
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * lines;
      if (unit >= seat.end) continue;
      const PixelPosition at = pixels.position(unit);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (at.mask >> e & 1u) {
          const int64_t offset = start + (at.first + pixels.step(e)) * grid.channels;
          gradient.template apply_pixel<V>(offset, e, coefficients, operands[u], values[u][e]);
          store<V>(dx + offset, values[u][e]);
        }
    }
  }
}

}  // namespace ltdd::cuda
