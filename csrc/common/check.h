#pragma once

// Guards of the kernels: what would read or write outside a tensor is refused here, for CPU and
// CUDA alike. They take any tensor type with dim(), size(), numel(): no torch header is needed.
//
// The full check of arguments, with ValueError and TypeError, is ltdd_ext/_check.py: it runs before
// any backend is chosen. These guards are for those who call torch.ops.ltdd_ext directly.

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace ltdd {

// Throws "<op>: expected <what>, got <value>".
template <typename... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": expected ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <typename Tensor>
std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i > 0 ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

template <typename Tensor>
bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

template <typename Tensor>
void check_activation(const char* op, const Tensor& x) {
  if (x.dim() != 3 && x.dim() != 4)
    refuse(op, "x of shape (N, C, H, W) or (N, C, S), got ", shape_of(x));
}

template <typename Tensor>
void check_matrix(const char* op, const char* name, const Tensor& tensor, int64_t rows,
                  int64_t columns) {
  if (tensor.dim() != 2 || tensor.size(0) != rows || tensor.size(1) != columns)
    refuse(op, name, " of shape (", rows, ", ", columns, "), got ", shape_of(tensor));
}

template <typename Tensor>
void check_vector(const char* op, const char* name, const Tensor& tensor, int64_t length) {
  if (tensor.dim() != 1 || tensor.size(0) != length)
    refuse(op, name, " of shape (", length, ",), got ", shape_of(tensor));
}

inline void check_count(const char* op, const char* name, int64_t got, int64_t expected) {
  if (got != expected) refuse(op, expected, " ", name, ", got ", got);
}

// For labels in host memory, the check itself: reading them in Python takes longer than a small
// batch. On a device the kernel must skip what is out of range.
inline void check_labels(const char* op, const int64_t* labels, int64_t count,
                         int64_t num_classes) {
  if (count == 0) return;
  const auto [low, high] = std::minmax_element(labels, labels + count);
  if (*low < 0 || *high >= num_classes)
    refuse(op, "labels in [0, ", num_classes, "), got ", *low < 0 ? *low : *high);
}

}  // namespace ltdd
