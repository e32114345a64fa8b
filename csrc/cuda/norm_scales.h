#pragma once

// The small tables of norm_act: from the moments of rows to what the passes over x need of each
// mean, one a row (over images) or one a channel (over the batch). All in double, a block for 16
// channels; sums over images have one order.

#include "../common/norm.h"
#include "bn_act_gradient.h"

namespace ltdd::cuda {

inline constexpr int kTableSide = 16;  // channels of a block, and lines that share its images

struct NormRows {
  int64_t images, channels;
  double size, eps;
  bool per_image;

  __host__ __device__ int64_t means() const { return per_image ? images * channels : channels; }
  __device__ int64_t mean_of(int64_t image, int64_t channel) const {
    return per_image ? image * channels + channel : channel;
  }
};

// What is known of each mean.
template <typename acc_t>
struct NormTable {
  Norm* norms;                            // [means]
  NormCoefficients<acc_t>* coefficients;  // [means]

  static size_t bytes(const NormRows& rows) {
    return static_cast<size_t>(rows.means()) * (sizeof(Norm) + sizeof(NormCoefficients<acc_t>));
  }
  // In memory of so many bytes.
  NormTable(const NormRows& rows, void* memory)
      : norms(static_cast<Norm*>(memory)),
        coefficients(reinterpret_cast<NormCoefficients<acc_t>*>(norms + rows.means())) {}
};

// The coefficients of a row, read from the table.
template <typename acc_t>
struct TrainedNorms {
  const NormCoefficients<acc_t>* table;
  bool per_image;

  __device__ const NormCoefficients<acc_t>& at(int64_t row, int64_t channel) const {
    return table[per_image ? row : channel];
  }
};

// Sum over the lines of a block of what each has for the thread's channel.
[[maybe_unused]] static __device__ double sum_over_lines(double mine) {
  __shared__ double found[kTableSide][kTableSide];
  __syncthreads();  // an earlier sum has been read
  found[threadIdx.y][threadIdx.x] = mine;
  __syncthreads();
  double sum = 0;
  for (int line = 0; line < kTableSide; ++line) sum += found[line][threadIdx.x];
  return sum;
}

// Fills the table, for the forward pass and for sum g and sum g (x - mean).
template <typename acc_t>
__global__ void __launch_bounds__(kTableSide* kTableSide)
    norm_scales_kernel(NormRows rows, const double* __restrict__ mean,  // (N, C)
                       const double* __restrict__ m2,                   // (N, C)
                       const acc_t* __restrict__ weight,                // [C]
                       const acc_t* __restrict__ bias,                  // [C]
                       NormTable<acc_t> table) {
  const int64_t channel = int64_t(blockIdx.y) * kTableSide + threadIdx.x;
  const bool active = channel < rows.channels;
  const int line = static_cast<int>(threadIdx.y);
  const auto write = [&](int64_t at, double center, double var) {
    const Norm norm = norm_of(center, var, rows.eps);
    const auto [scale, offset] =
        norm_scale(norm, static_cast<double>(weight[channel]), static_cast<double>(bias[channel]));
    table.norms[at] = norm;
    table.coefficients[at] = {{0, 0, static_cast<acc_t>(center)},
                              {static_cast<acc_t>(scale), static_cast<acc_t>(offset)}};
  };
  if (rows.per_image) {
    const int64_t image = int64_t(blockIdx.x) * kTableSide + line;
    const int64_t row = image * rows.channels + channel;
    if (active && image < rows.images) write(row, mean[row], m2[row] / rows.size);
    return;
  }
  const double images = static_cast<double>(rows.images);
  double sum = 0, squares = 0;
  for (int64_t image = line; active && image < rows.images; image += kTableSide)
    sum += mean[image * rows.channels + channel];
  const double center = sum_over_lines(sum) / images;
  for (int64_t image = line; active && image < rows.images; image += kTableSide) {
    const int64_t row = image * rows.channels + channel;
    const double gap = mean[row] - center;
    squares += m2[row] + rows.size * gap * gap;
  }
  const double var = sum_over_lines(squares) / (rows.size * images);
  if (active && line == 0) write(channel, center, var);
}

template <typename acc_t>
NormTable<acc_t> launch_norm_scales(const NormRows& rows, const double* mean, const double* m2,
                                    const void* weight, const void* bias, void* memory,
                                    cudaStream_t stream) {
  const NormTable<acc_t> table(rows, memory);
  const int64_t lines = rows.per_image ? ceil_div<int64_t>(rows.images, kTableSide) : 1;
  launch(&norm_scales_kernel<acc_t>,
         dim3(static_cast<unsigned>(lines),
              static_cast<unsigned>(ceil_div<int64_t>(rows.channels, kTableSide))),
         dim3(kTableSide, kTableSide), 0, stream, rows, mean, m2, static_cast<const acc_t*>(weight),
         static_cast<const acc_t*>(bias), table);
  return table;
}

inline NormRows norm_rows(const Activation& shape, const NormAct& norm) {
  return {shape.images, shape.channels, static_cast<double>(shape.size()), norm.eps,
          norm.per_image};
}

// Bytes of the table, whatever it is computed in.
inline size_t table_bytes(const Activation& shape, const NormAct& norm) {
  const NormRows rows = norm_rows(shape, norm);
  return shape.type == Type::kFloat64 ? NormTable<double>::bytes(rows)
                                      : NormTable<float>::bytes(rows);
}

}  // namespace ltdd::cuda
