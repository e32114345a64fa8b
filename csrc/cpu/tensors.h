#pragma once

// How the CPU kernels look at tensors of the stable ABI: storage types, the two memory layouts, and
// loops whose split depends on the shape alone.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../common/check.h"

namespace ltdd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float64 stays float64, everything else is accumulated and returned in float32.
template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

inline ScalarType acc_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls body.template operator()<scalar_t>() for the storage type of the tensor.
template <typename Body>
void dispatch_floating(const char* op, const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body.template operator()<float>();
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::BFloat16:
      return body.template operator()<c10::BFloat16>();
    case ScalarType::Half:
      return body.template operator()<c10::Half>();
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
  return torch::stable::new_empty(a.tensor, a.tensor.sizes());
}

inline Tensor empty_rows(const Activation& a) {
  const int64_t shape[] = {a.n, a.c};
  return torch::stable::new_empty(a.tensor, {shape, 2}, acc_dtype(a.tensor.scalar_type()));
}

// Contiguous, and of the wanted dtype.
inline Tensor contiguous_as(const Tensor& tensor, ScalarType dtype) {
  const Tensor dense = torch::stable::contiguous(tensor);
  if (dense.scalar_type() == dtype) return dense;
  return torch::stable::to(dense, dtype);
}

// Elements one task should at least touch before another thread is worth waking.
inline constexpr int64_t kGrainElements = 32768;

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

}  // namespace ltdd
