#pragma once

// Row moments in NHWC, where the C channels of a pixel lie together.
//
// A thread owns V channels of one image (one 16-byte vector; V = 1 where C is not a multiple) and
// walks down the pixels, a tile of units at a time: all loads of the tile first, then one pass over
// the registers, which adds up d = x - center and d^2 about a center of the thread's own. The
// threads of a block that share the channels are merged through shared memory in a fixed order: up
// to V of them in the accumulation type, what these leave in double. Large planes are cut: a
// block takes one of `splits` parts, and merge_splits_kernel puts the parts together. x is read
// once; no atomics.

#include "../common/moments.h"
#include "units.h"

namespace ltdd::cuda {

inline constexpr int kPixelThreads = 256;
inline constexpr int kPixelBlocks = 2;  // on a multiprocessor; see kRowBlocks

// blockDim = (threads along channels, threads along pixels); gridDim = (images * splits, tiles).
struct PixelGrid {
  int64_t images;
  int channels;  // 32 bits, so that one instruction multiplies a pixel by it
  int splits;
  int share;               // units per split
  int64_t image_elements;  // from one image to the next in x, and in the output
  int64_t output_elements;
};

// Where this thread works: image, first channel, units [begin, end) of the plane.
template <int V>
struct PixelSeat {
  int image, channel, split, begin, end;
  bool active;

  __device__ PixelSeat(const PixelGrid& grid, int units) {
    image = static_cast<int>(blockIdx.x / static_cast<unsigned>(grid.splits));
    split = static_cast<int>(blockIdx.x % static_cast<unsigned>(grid.splits));
    channel = static_cast<int>((blockIdx.y * blockDim.x + threadIdx.x) * V);
    begin = split * grid.share;
    end = units - begin < grid.share ? units : begin + grid.share;
    active = channel < grid.channels;
  }
};

// Sums of d = x - center and of d^2 over `count` pixels, for V channels.
template <int V, typename acc_t>
struct ShiftedSums {
  int count = 0;
  acc_t center[V] = {};
  acc_t sum[V] = {};
  acc_t square[V] = {};
};

// Sets each center to the mean of the first tile, as near as a plain sum gets: then differences are
// as good as exact. Where that sum overflows or is not finite, the first element serves.
template <typename scalar_t, int V, int kUnits, int kElements>
__device__ __forceinline__ void find_centers(ShiftedSums<V, acc_type<scalar_t>>& sums,
                                             const Pack<scalar_t, V> (&raw)[kUnits][kElements],
                                             const unsigned (&mask)[kUnits]) {
  using acc_t = acc_type<scalar_t>;
  int count = 0;
  acc_t sum[V] = {};
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (mask[u] >> e & 1u) {
        ++count;
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += raw[u][e][v];
      }
  const acc_t inverse = acc_t(1) / static_cast<acc_t>(count);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] *= inverse;
  Pack<scalar_t, V> center;
  center.round(sum);
#pragma unroll
  for (int v = 0; v < V; ++v)
    sums.center[v] = is_finite(center[v]) ? center[v] : pivot_from(raw[0][0][v]);
}

template <int V, int kElements, typename acc_t>
__device__ __forceinline__ void add_unit(ShiftedSums<V, acc_t>& sums,
                                         const acc_t (&values)[kElements][V], unsigned mask) {
  sums.count += kElements == 1 ? 1 : __popc(mask);
#pragma unroll
  for (int e = 0; e < kElements; ++e)
    if (kElements == 1 || mask >> e & 1u)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const acc_t gap = values[e][v] - sums.center[v];
        sums.sum[v] += gap;
        sums.square[v] += gap * gap;
      }
}

// Moves the center to the mean so far. About the mean of half the elements, the sum of squares of
// all is at most twice what it is about their own mean: done before tiles 2, 4, 8, ..., no start
// misleads for long, be it ever so far from the rest.
template <typename scalar_t, int V>
__device__ __forceinline__ void recenter(ShiftedSums<V, acc_type<scalar_t>>& sums) {
  using acc_t = acc_type<scalar_t>;
  const acc_t count = static_cast<acc_t>(sums.count), inverse = acc_t(1) / count;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const acc_t next = center_from<scalar_t>(sums.center[v] + sums.sum[v] * inverse);
    const acc_t shift = is_finite(next) ? next - sums.center[v] : acc_t(0);
    const acc_t left = sums.sum[v] - count * shift;
    sums.square[v] -= shift * (sums.sum[v] + left);
    sums.sum[v] = left;
    sums.center[v] += shift;
  }
}

// Moments of each channel of a block, by line; the mean is center + rest.
template <int V, typename acc_t>
struct LineMoments {
  acc_t center[kPixelThreads * V];
  acc_t rest[kPixelThreads * V];
  acc_t m2[kPixelThreads * V];
  int count[kPixelThreads];
};

// Moments of one channel over the lines [first, last), its mean as the distance to the center of
// the first of them. As merge_parts, but in the accumulation type.
template <int V, typename acc_t>
__device__ __forceinline__ Moments<acc_t> merge_lines(const LineMoments<V, acc_t>& found,
                                                      int column, int width, int first, int last) {
  const acc_t origin = found.center[first * width + column];
  while (last > first && found.count[last - 1] == 0) --last;  // lines without pixels come last
  const auto gap = [&](int line) {
    const int at = line * width + column;
    return (found.center[at] - origin) + found.rest[at];
  };
  acc_t count = 0, sum = 0;
  for (int line = first; line < last; ++line) {
    const acc_t here = static_cast<acc_t>(found.count[line]);
    count += here;
    sum += here * gap(line);
  }
  const acc_t mean = count > 0 ? sum / count : acc_t(0);
  acc_t m2 = 0;
  for (int line = first; line < last; ++line) {
    const acc_t far = gap(line) - mean;
    m2 += found.m2[line * width + column] + static_cast<acc_t>(found.count[line]) * far * far;
  }
  return {count, mean, m2};
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
                         SplitParts parts, PixelGrid grid, Pixels pixels, Epilogue epilogue) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kElements = Pixels::kElements;
  __shared__ LineMoments<V, acc_t> found;
  __shared__ Moments<double> merged[kPixelThreads];
  const PixelSeat<V> seat(grid, pixels.count);
  const int lines = static_cast<int>(blockDim.y);
  const int line = static_cast<int>(threadIdx.y);
  const int pitch = grid.channels * static_cast<int>(sizeof(scalar_t));  // bytes of a pixel
  const int64_t start = seat.image * grid.image_elements + seat.channel;
  x += start;
  epilogue.start_at(start, seat.image * grid.output_elements + seat.channel);

  ShiftedSums<V, acc_t> sums;
  if (seat.active) {
    const auto coefficients = epilogue.template channel_coefficients<V>(seat.channel);
    int tiles = 0, next_center = 0;
    for (int first = seat.begin + line; first < seat.end; first += lines * kUnits) {
      Pack<scalar_t, V> raw[kUnits][kElements];
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
            const int64_t offset = wide_product(at.first + pixels.step(e), pitch);
            raw[u][e] = load<V>(bytes_on(x, offset));
            epilogue.template load_pixel<V>(offset, e, operands[u]);
          }
        if constexpr (Pixels::kAround > 0)
          if (mask[u] != 0) epilogue.template load_around<V>(pixels, at, pitch, operands[u]);
      }
      if (tiles++ == next_center) {
        if (next_center == 0)
          find_centers(sums, raw, mask);
        else
          recenter<scalar_t>(sums);
        next_center = next_center == 0 ? 2 : 2 * next_center;
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        if (mask[u] != 0) {
          acc_t values[kElements][V];
#pragma unroll
          for (int e = 0; e < kElements; ++e)
#pragma unroll
            for (int v = 0; v < V; ++v) values[e][v] = raw[u][e][v];
          add_unit(sums, values, mask[u]);
          if constexpr (Epilogue::kWrites) {
            const int output = pixels.position(first + u * lines).output;
            if (kElements == 1 || output >= 0)
              epilogue.template write_pixel<V>(wide_product(output, pitch), coefficients,
                                               operands[u], values);
          }
        }
    }
  }

  const int width = static_cast<int>(blockDim.x) * V;
  const acc_t inverse = sums.count > 0 ? acc_t(1) / static_cast<acc_t>(sums.count) : acc_t(0);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int at = line * width + static_cast<int>(threadIdx.x) * V + v;
    const acc_t rest = sums.sum[v] * inverse;
    found.center[at] = sums.center[v];
    found.rest[at] = rest;
    found.m2[at] = sums.square[v] - sums.sum[v] * rest;
  }
  if (threadIdx.x == 0) found.count[line] = sums.count;
  __syncthreads();

  // All threads merge: a few lines of a channel each. Lines and threads are powers of two.
  const int thread = line * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  const int threads = lines * static_cast<int>(blockDim.x);
  const int groups = lines > V ? lines / V : 1;
  for (int item = thread; item < groups * width; item += threads) {
    const int column = item % width, begin = item / width * (lines / groups);
    const Moments<acc_t> part = merge_lines(found, column, width, begin, begin + lines / groups);
    merged[item] = {double(part.count),
                    double(found.center[begin * width + column]) + double(part.mean),
                    double(part.m2)};
  }
  __syncthreads();

  for (int column = thread; column < width; column += threads) {
    const int channel = static_cast<int>(blockIdx.y) * width + column;
    if (channel >= grid.channels) continue;
    const Moments<double> all =
        merge_parts(groups, [&](int p) { return merged[p * width + column]; });
    const int64_t row = int64_t(seat.image) * grid.channels + channel;
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

}  // namespace ltdd::cuda
