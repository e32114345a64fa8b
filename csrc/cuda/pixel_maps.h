#pragma once

// What is done to NHWC activations element by element, with a few numbers a row or a channel: a map
// of x (and of what lies beside it) to another activation, and the sums of a gradient that a norm
// wants.
//
// Threads, tiles and splits as in pixels.h; all loads of a tile come first.

#include "pixels.h"

namespace ltdd::cuda {

// What all lines of a block need of its channels, computed once: some of it takes doubles.
template <typename Map>
struct ChannelCoefficients {
  typename Map::Coefficients of[kPixelThreads];

  // By all threads; the coefficients of a thread's own V channels.
  template <int V>
  __device__ const typename Map::Coefficients* fill(const PixelGrid& grid, const PixelSeat<V>& seat,
                                                    const Map& map) {
    const int width = static_cast<int>(blockDim.x) * V;
    const int threads = static_cast<int>(blockDim.x * blockDim.y);
#pragma unroll 1
    for (int column = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); column < width;
         column += threads) {
      const int channel = static_cast<int>(blockIdx.y) * width + column;
      if (channel < grid.channels)
        of[column] = map.coefficients(int64_t(seat.image) * grid.channels + channel, channel);
    }
    __syncthreads();
    return of + threadIdx.x * V;
  }
};

// Calls body(position, operands, raw) for each unit of a seat, when its tile has been loaded. x and
// the map begin at the image and channel of the seat.
template <int V, int kUnits, typename scalar_t, typename Pixels, typename Map, typename Body>
__device__ __forceinline__ void for_pixel_tiles(const scalar_t* x, const PixelSeat<V>& seat,
                                                const Pixels& pixels, int pitch, const Map& map,
                                                const Body& body) {
  constexpr int kElements = Pixels::kElements;
  const int lines = static_cast<int>(blockDim.y);
  for (int first = seat.begin + static_cast<int>(threadIdx.y); first < seat.end;
       first += lines * kUnits) {
    Pack<scalar_t, V> raw[kUnits][kElements];
    typename Map::template PixelOperands<kElements, V> operands[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * lines;
      if (unit < seat.end) {
        const PixelPosition at = pixels.position(unit);
        map.template load_output<V>(kElements == 1 || at.output >= 0,
                                    wide_product(at.output, pitch), operands[u]);
#pragma unroll
        for (int e = 0; e < kElements; ++e)
          if (at.mask >> e & 1u) {
            const int64_t offset = wide_product(at.first + pixels.step(e), pitch);
            raw[u][e] = load<V>(bytes_on(x, offset));
            map.template load_pixel<V>(offset, e, operands[u]);
          }
        if constexpr (Pixels::kAround > 0)
          map.template load_around<V>(pixels, at, pitch, operands[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int unit = first + u * lines;
      if (unit < seat.end) body(pixels.position(unit), operands[u], raw[u]);
    }
  }
}

// out = map(x), pooled where the map leads to outputs.
template <typename scalar_t, int V, typename Pixels, int kUnits, typename Map>
__global__ void __launch_bounds__(kPixelThreads, kPixelBlocks)
    pixel_map_kernel(const scalar_t* __restrict__ x,  // (N, S, C)
                     scalar_t* __restrict__ out,      // (N, S, C), or an output a window
                     PixelGrid grid, Pixels pixels, Map map) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kElements = Pixels::kElements;
  __shared__ ChannelCoefficients<Map> shared;
  const PixelSeat<V> seat(grid, pixels.count);
  const int pitch = grid.channels * static_cast<int>(sizeof(scalar_t));  // bytes of a pixel
  const int64_t start = seat.image * grid.image_elements + seat.channel;
  const int64_t output_start = seat.image * grid.output_elements + seat.channel;
  x += start;
  out += Map::kToOutputs ? output_start : start;
  map.start_at(start, output_start);
  const auto* coefficients = shared.fill(grid, seat, map);
  if (!seat.active) return;
  for_pixel_tiles<V, kUnits>(
      x, seat, pixels, pitch, map,
      [&](const PixelPosition& at, const auto& operands, const auto& raw) {
        if constexpr (Map::kToOutputs) {
          if (kElements > 1 && at.output < 0) return;
          acc_t sum[V];
          map.template apply_pixel<V>(0, 0, coefficients, operands, raw[0], sum);
#pragma unroll
          for (int e = 1; e < kElements; ++e) {
            acc_t values[V];
            map.template apply_pixel<V>(0, e, coefficients, operands, raw[e], values);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] += values[v];
          }
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] *= acc_t(1) / kElements;
          store<V>(bytes_on(out, wide_product(at.output, pitch)), sum);
        } else {
#pragma unroll
          for (int e = 0; e < kElements; ++e)
            if (at.mask >> e & 1u) {
              const int64_t offset = wide_product(at.first + pixels.step(e), pitch);
              acc_t values[V];
              map.template apply_pixel<V>(offset, e, coefficients, operands, raw[e], values);
              store<V>(bytes_on(out, offset), values);
            }
        }
      });
}

// Of every part of a plane and channel: sums[p, c] = sum g, sums[parts + p, c] = sum g (x -
// center), g being the gradient before the bound. Lines are added in pairs.
template <typename scalar_t, int V, typename Pixels, int kUnits, typename Gradient>
__global__ void __launch_bounds__(kPixelThreads, kPixelBlocks)
    pixel_sums_kernel(const scalar_t* __restrict__ x,  // (N, S, C)
                      double* __restrict__ sums,       // (2, N * splits, C)
                      PixelGrid grid, Pixels pixels, Gradient gradient) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kElements = Pixels::kElements;
  __shared__ ChannelCoefficients<Gradient> shared;
  __shared__ acc_t found[2][kPixelThreads * V];
  const PixelSeat<V> seat(grid, pixels.count);
  const int pitch = grid.channels * static_cast<int>(sizeof(scalar_t));  // bytes of a pixel
  const int64_t start = seat.image * grid.image_elements + seat.channel;
  x += start;
  gradient.start_at(start, seat.image * grid.output_elements + seat.channel);
  const auto* coefficients = shared.fill(grid, seat, gradient);

  acc_t sum[V] = {}, sum_x[V] = {};
  if (seat.active)
    for_pixel_tiles<V, kUnits>(x, seat, pixels, pitch, gradient,
                               [&](const PixelPosition& at, const auto& operands, const auto& raw) {
#pragma unroll
                                 for (int e = 0; e < kElements; ++e)
                                   if (at.mask >> e & 1u)
#pragma unroll
                                     for (int v = 0; v < V; ++v) {
                                       const acc_t value = raw[e][v];
                                       const auto& here = coefficients[v];
                                       const acc_t g = gradient.template before_bound<V>(
                                           here, operands, e, v, value);
                                       sum[v] += g;
                                       sum_x[v] += g * (value - here.moments.center);
                                     }
                               });

  const int across = static_cast<int>(blockDim.x), line = static_cast<int>(threadIdx.y);
  const auto place = [&](int of_line, int v) {
    return (of_line * V + v) * across + static_cast<int>(threadIdx.x);
  };
#pragma unroll
  for (int v = 0; v < V; ++v) {
    found[0][place(line, v)] = sum[v];
    found[1][place(line, v)] = sum_x[v];
  }
  for (int half = static_cast<int>(blockDim.y) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (line < half)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        found[0][place(line, v)] += found[0][place(line + half, v)];
        found[1][place(line, v)] += found[1][place(line + half, v)];
      }
  }
  if (line > 0 || !seat.active) return;
  const int64_t part = int64_t(blockIdx.x) * grid.channels + seat.channel;
  const int64_t parts = int64_t(gridDim.x) * grid.channels;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sums[part + v] = found[0][place(0, v)];
    sums[parts + part + v] = found[1][place(0, v)];
  }
}

}  // namespace ltdd::cuda
