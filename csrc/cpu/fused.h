#pragma once

// What the operators that fuse a norm with activation and pool share: the image they see, and
// tensors laid out like theirs.

#include <optional>

#include "kernels.h"
#include "tensors.h"

namespace ltdd {

inline constexpr int64_t kWidestPooled = 8192;  // two image rows must fit the pooling buffer

struct Image {
  int64_t height, width;
};

// Checks what the kernels rely on and returns the image size; (N, C, S) is an image of height 1.
inline Image check_fused(const char* op, const Activation& a, int64_t act, int64_t pool) {
  if (act != 0 && act != 1) refuse(op, "act 0 (none) or 1 (ReLU), got ", act);
  if (pool != 1 && pool != 2) refuse(op, "pool 1 (none) or 2 (2x2 average), got ", pool);
  if (a.tensor.dim() == 3) {
    if (pool == 2) refuse(op, "x of shape (N, C, H, W) with pool, got ", shape_of(a.tensor));
    return {1, a.s};
  }
  const Image shape{a.tensor.size(2), a.tensor.size(3)};
  if (pool == 2 && (shape.height < 2 || shape.width < 2 || shape.width > kWidestPooled))
    refuse(op, "x of height >= 2 and width in [2, ", kWidestPooled, "] with pool, got ",
           shape_of(a.tensor));
  return shape;
}

// A tensor that accompanies x, (N, C) + image, in the layout of x; copied if it lies otherwise.
inline Tensor in_layout_of(const char* op, const char* name, const Activation& a,
                           const Image& image, const Tensor& other) {
  if (other.dim() != a.tensor.dim() || other.size(0) != a.n || other.size(1) != a.c ||
      other.numel() != a.n * a.c * image.height * image.width ||
      other.size(other.dim() - 1) != image.width)
    refuse(op, name, " to fit x of shape ", shape_of(a.tensor), ", got ", shape_of(other));
  if (other.scalar_type() != a.tensor.scalar_type())
    refuse(op, name, " of the dtype of x, got another");
  const bool same = a.layout == Layout::kRows ? is_rows(other) : is_pixels(other);
  if (same) return other;
  if (a.layout == Layout::kRows) return torch::stable::contiguous(other);
  if (other.dim() == 4)
    return torch::stable::contiguous(other, torch::headeronly::MemoryFormat::ChannelsLast);
  Tensor copy = empty_like(a);  // three dimensions: no memory format names this layout
  torch::stable::copy_(copy, other);
  return copy;
}

// An empty output of the activation's layout, for images of another size.
inline Tensor empty_images(const Activation& a, int64_t height, int64_t width) {
  const int64_t shape[] = {a.n, a.c, height, width};
  using torch::headeronly::MemoryFormat;
  if (a.layout == Layout::kRows) return new_empty(a.tensor, {shape, 4}, a.tensor.scalar_type());
  return torch::stable::empty({shape, 4}, a.tensor.scalar_type(), std::nullopt, a.tensor.device(),
                              std::nullopt, MemoryFormat::ChannelsLast);
}

}  // namespace ltdd
