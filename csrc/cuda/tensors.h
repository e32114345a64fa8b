#pragma once

// What the bindings share: tensors of the stable ABI on one CUDA device, seen as the launchers of
// ops.h want them. No CUDA header: streams and pointers are enough.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>

#include "../common/check.h"
#include "../new_empty.h"
#include "ops.h"

namespace ltdd::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat32;
    case ScalarType::Double:
      return Type::kFloat64;
    case ScalarType::Half:
      return Type::kFloat16;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      refuse(op, "float32, float64, bfloat16 or float16, got another dtype");
  }
}

// float64 stays float64, everything else is computed in float32.
inline ScalarType acc_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A kernel would follow a pointer to host memory or to another GPU wherever it leads.
inline void check_same_device(const char* op, const char* name, const Tensor& tensor,
                              const Tensor& x) {
  if (!tensor.is_cuda() || tensor.get_device_index() != x.get_device_index())
    refuse(op, name, " on cuda:", x.get_device_index(), ", got another device");
}

inline Stream current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

// On the device of x, contiguous, and of the wanted dtype. Torch is asked only where the tensor is
// not: a call into it takes as long as a launch.
inline Tensor dense(const char* op, const char* name, const Tensor& tensor, const Tensor& x,
                    ScalarType dtype) {
  check_same_device(op, name, tensor, x);
  const Tensor contiguous = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  if (contiguous.scalar_type() == dtype) return contiguous;
  return torch::stable::to(contiguous, dtype);
}

inline double* row_data(const Tensor& rows) {
  return static_cast<double*>(rows.mutable_data_ptr());
}
inline const double* const_row_data(const Tensor& rows) {
  return static_cast<const double*>(rows.const_data_ptr());
}

inline Tensor new_empty(const Tensor& x, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return ltdd::new_empty(x, {shape.begin(), shape.size()}, dtype);
}

// Scratch comes from torch's caching allocator, so a captured graph owns it; most launches need
// none.
struct Scratch {
  std::optional<Tensor> tensor;

  Scratch(const Tensor& x, size_t bytes) {
    if (bytes > 0) tensor = new_empty(x, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  }
  void* data() const { return tensor ? tensor->mutable_data_ptr() : nullptr; }
};

// True when walking the dimensions in the given order, innermost first, meets no gap; a dimension
// of size 1 has no say.
inline bool is_dense(const Tensor& x, std::initializer_list<int64_t> inner_to_outer) {
  int64_t expected = 1;
  for (const int64_t dim : inner_to_outer) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// Whether x lies in memory as NHWC (channels_last) or as NCHW.
inline bool has_layout(const Tensor& x, bool channels_last) {
  if (x.dim() == 4) return channels_last ? is_dense(x, {1, 3, 2, 0}) : is_dense(x, {3, 2, 1, 0});
  return channels_last ? is_dense(x, {1, 2, 0}) : is_dense(x, {2, 1, 0});
}

// An activation and how it lies in memory; strides that are neither NCHW nor NHWC are copied once.
struct ActivationTensor {
  Tensor tensor;
  Activation shape;

  const void* data() const { return tensor.const_data_ptr(); }

  // A new tensor of the same shape, dtype and layout.
  Tensor like() const {
    if (shape.channels_last)
      return new_strided(tensor, tensor.sizes(), tensor.strides(), tensor.scalar_type());
    return ltdd::new_empty(tensor, tensor.sizes(), tensor.scalar_type());
  }

  // The tensor, or a copy of it, that lies in memory like this activation. Its plane may be
  // another.
  Tensor in_layout(const char* op, const char* name, const Tensor& other) const {
    check_same_device(op, name, other, tensor);
    const Tensor same = other.scalar_type() == tensor.scalar_type()
                            ? other
                            : torch::stable::to(other, tensor.scalar_type());
    if (other.numel() == 0 || has_layout(same, shape.channels_last)) return same;
    Tensor copy = empty_in_layout(same.size(same.dim() - 2), same.size(same.dim() - 1));
    torch::stable::copy_(copy, same);
    return copy;
  }

  // What begins at a multiple of 16 bytes, so that vectors fit; copied where it does not.
  static Tensor aligned(const Tensor& other) {
    const bool fits = reinterpret_cast<uintptr_t>(other.const_data_ptr()) % 16 == 0;
    return fits ? other : torch::stable::clone(other);
  }

  // A new activation of N * C planes of another size; a 3-d tensor keeps its plane.
  Tensor empty_in_layout(int64_t height, int64_t width) const {
    if (tensor.dim() == 3) return like();
    const int64_t sizes[] = {shape.images, shape.channels, height, width};
    return torch::stable::empty({sizes, 4}, tensor.scalar_type(), std::nullopt, tensor.device(),
                                std::nullopt,
                                shape.channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                    : torch::headeronly::MemoryFormat::Contiguous);
  }

  // A new output of a fused operator, and whether a tensor has its shape: half the plane if pooled.
  Tensor output(bool pool) const {
    return pool ? empty_in_layout(shape.height / 2, shape.width / 2) : like();
  }
  bool is_output(const Tensor& other, bool pool) const {
    if (!pool) return same_shape(other, tensor);
    return other.dim() == 4 && other.size(0) == shape.images && other.size(1) == shape.channels &&
           other.size(2) == shape.height / 2 && other.size(3) == shape.width / 2;
  }

  // The gradient of that output, in this layout.
  Tensor output_grad(const char* op, const Tensor& grad_y, bool pool) const {
    if (!is_output(grad_y, pool))
      refuse(op, "grad_y of shape ", shape_of(output(pool)), ", got ", shape_of(grad_y));
    return in_layout(op, "grad_y", grad_y);
  }

  // Row moments are float64 whatever the activation is.
  Tensor rows() const {
    return new_empty(tensor, {shape.images, shape.channels}, ScalarType::Double);
  }
};

inline ActivationTensor as_activation(const char* op, const Tensor& x) {
  check_activation(op, x);
  const bool planes = x.dim() == 4;
  const int64_t height = planes ? x.size(2) : 1, width = x.size(planes ? 3 : 2);
  constexpr int64_t kMost = int64_t(1) << 30;  // sums of such indices still fit in an int
  if (height > kMost || width > kMost || height * width > kMost)
    refuse(op, "at most 2^30 elements per channel, got ", shape_of(x));
  if (x.size(1) > kMost / 8) refuse(op, "at most 2^27 channels, got ", shape_of(x));
  Activation shape{type_of(op, x),          x.size(0), x.size(1), static_cast<int>(height),
                   static_cast<int>(width), false};
  if (x.numel() == 0 || has_layout(x, false)) return {x, shape};
  if (has_layout(x, true)) {
    shape.channels_last = true;
    return {x, shape};
  }
  return {torch::stable::contiguous(x), shape};
}

// What a fused operator does besides its norm.
struct Switches {
  bool relu, pool;
};

inline Switches check_switches(const char* op, const Tensor& x, int64_t act, int64_t pool) {
  if (act != 0 && act != 1) refuse(op, "act 0 or 1, got ", act);
  if (pool != 1 && pool != 2) refuse(op, "pool 1 or 2, got ", pool);
  if (pool == 2 && x.dim() != 4)
    refuse(op, "x of shape (N, C, H, W) for pooling, got ", shape_of(x));
  return {act == 1, pool == 2};
}

// Mean and m2 of every row of x, (N, C) each; in row_moments_binding.cpp.
std::tuple<Tensor, Tensor> row_moments_cuda(const Tensor& x);

}  // namespace ltdd::cuda
