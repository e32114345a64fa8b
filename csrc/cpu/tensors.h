#pragma once

// How the CPU kernels look at tensors of the stable ABI: storage types, the two memory layouts, and
// loops whose split depends on the shape alone.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>

#include "../common/check.h"
#include "../new_empty.h"
#include "kernels.h"

namespace ltdd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float64 stays float64, everything else is computed in float32.
inline ScalarType acc_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Storage storage_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat;
    case ScalarType::Double:
      return Storage::kDouble;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kHalf;
    default:
      refuse(op, "float32, float64, bfloat16 or float16, got another dtype");
  }
}

// Rows of S elements: kRows holds each row together (NCHW), kPixels holds the C channels of each
// pixel together (NHWC, torch's channels_last).
enum class Layout { kRows, kPixels };

// An activation in one of the two layouts; other strides are copied to NCHW, once, here.
struct Activation {
  Tensor tensor;
  Layout layout;
  int64_t n, c, s;
};

// True when walking the dimensions in the given order, innermost first, meets no gap; dimensions of
// size 1 have no say, so a tensor may well be dense both ways: then it is kRows.
inline bool dense_in_order(const Tensor& x, std::initializer_list<int64_t> inner_to_outer) {
  int64_t expected = 1;
  for (const int64_t dim : inner_to_outer) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

inline bool is_rows(const Tensor& x) {
  return x.dim() == 4 ? dense_in_order(x, {3, 2, 1, 0}) : dense_in_order(x, {2, 1, 0});
}

inline bool is_pixels(const Tensor& x) {
  return x.dim() == 4 ? dense_in_order(x, {1, 3, 2, 0}) : dense_in_order(x, {1, 2, 0});
}

inline Activation as_activation(const char* op, const Tensor& x) {
  check_activation(op, x);
  const int64_t s = x.dim() == 4 ? x.size(2) * x.size(3) : x.size(2);
  if (x.numel() == 0 || is_rows(x)) return {x, Layout::kRows, x.size(0), x.size(1), s};
  if (is_pixels(x)) return {x, Layout::kPixels, x.size(0), x.size(1), s};
  return {torch::stable::contiguous(x), Layout::kRows, x.size(0), x.size(1), s};
}

// An output shaped and laid out like the activation.
inline Tensor empty_like(const Activation& a) {
  if (a.layout == Layout::kPixels) return torch::stable::empty_like(a.tensor);
  return new_empty(a.tensor, a.tensor.sizes(), a.tensor.scalar_type());
}

// Row moments are float64 whatever x is: a float32 mean far from zero has lost what differs between
// images.
inline Tensor empty_rows(const Activation& a) {
  const int64_t shape[] = {a.n, a.c};
  return new_empty(a.tensor, {shape, 2}, ScalarType::Double);
}

inline double* row_data(const Tensor& rows) {
  return static_cast<double*>(rows.mutable_data_ptr());
}
inline const double* const_row_data(const Tensor& rows) {
  return static_cast<const double*>(rows.const_data_ptr());
}

// Contiguous, and of the wanted dtype. Most tensors are: torch is asked only for the others, since
// a call into it takes as long as a small table.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType dtype) {
  const Tensor dense = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  if (dense.scalar_type() == dtype) return dense;
  return torch::stable::to(dense, dtype);
}

// Elements one task should at least touch before another thread is worth waking.
inline constexpr int64_t kGrainElements = 16384;

// Runs body(task) for each task. A task is a fixed part of the result, computed by one thread from
// start to end, so the number of threads changes who computes it and not one bit of it.
template <typename Body>
void for_each_task(int64_t tasks, int64_t elements_per_task, const Body& body) {
  const int64_t grain =
      std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_task));
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) body(task);
  });
}

// Tasks over the rows of an NCHW tensor: blocks of whole vectors of rows, body(begin, end).
template <typename Body>
void for_each_row_block(const Activation& a, const Body& body) {
  constexpr int64_t kVectorRows = 16;
  const int64_t rows = a.n * a.c;
  const int64_t block =
      (kGrainElements / std::max<int64_t>(1, a.s) / kVectorRows + 1) * kVectorRows;
  for_each_task((rows + block - 1) / block, block * a.s,
                [&](int64_t task) { body(task * block, std::min(rows, (task + 1) * block)); });
}

// Tasks over an NHWC tensor: body(sample, begin, end) with a range of channels. Channels are split
// only where samples are too few to go around; a channel's result does not depend on it.
template <typename Body>
void for_each_channel_block(const Activation& a, const Body& body) {
  constexpr int64_t kFewSamples = 8, kChannels = 64;
  const int64_t block = a.n < kFewSamples ? kChannels : a.c;
  const int64_t blocks = (a.c + block - 1) / block;
  for_each_task(a.n * blocks, block * a.s, [&](int64_t task) {
    const int64_t begin = task % blocks * block;
    body(task / blocks, begin, std::min(a.c, begin + block));
  });
}

// Calls body(first, last) for blocks of rows, row = sample * C + channel; in NHWC of one sample.
template <typename Body>
void for_each_block(const Activation& a, const Body& body) {
  if (a.layout == Layout::kRows)
    for_each_row_block(a, body);
  else
    for_each_channel_block(a, [&](int64_t sample, int64_t begin, int64_t end) {
      body(sample * a.c + begin, sample * a.c + end);
    });
}

// Calls the kernel of the layout for such a block.
template <typename Args>
void run_block(const Activation& a, void (*rows)(const Args&, int64_t, int64_t),
               void (*pixels)(const Args&, int64_t, int64_t, int64_t), const Args& args,
               int64_t first, int64_t last) {
  if (a.layout == Layout::kRows) return rows(args, first, last);
  const int64_t sample = first / a.c;
  pixels(args, sample, first - sample * a.c, last - sample * a.c);
}

// Calls the kernel of the layout for the whole activation.
template <typename Args>
void run_blocks(const Activation& a, void (*rows)(const Args&, int64_t, int64_t),
                void (*pixels)(const Args&, int64_t, int64_t, int64_t), const Args& args) {
  for_each_block(
      a, [&](int64_t first, int64_t last) { run_block(a, rows, pixels, args, first, last); });
}

// Outputs from here on go past the caches: they would push out what is read next, and a plain store
// reads the line it is about to overwrite.
inline constexpr int64_t kStreamBytes = int64_t{4} << 20;

inline bool worth_streaming(const Tensor& out) {
  return out.numel() * static_cast<int64_t>(out.element_size()) >= kStreamBytes;
}

// mean = NaN and m2 = 0 for rows without elements.
inline void fill_empty_rows(const Tensor& mean, const Tensor& m2) {
  Tensor to_mean = mean, to_m2 = m2;
  torch::stable::fill_(to_mean, std::numeric_limits<double>::quiet_NaN());
  torch::stable::fill_(to_m2, 0.0);
}

// Mean and m2 of every row of x, (N, C) each; in row_moments.cpp.
std::tuple<Tensor, Tensor> row_moments_cpu(const Tensor& x);

}  // namespace ltdd
