#pragma once

// What the emulated tests share: buffers of exactly the size that a kernel may touch, numbers that
// never change, comparisons against double, and a record of every output bit.

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ops.h"
#include "vector.h"

namespace harness {

using ltdd::cuda::Activation;
using ltdd::cuda::Type;

template <typename scalar_t>
inline constexpr Type type_of = std::is_same_v<scalar_t, float>    ? Type::kFloat32
                                : std::is_same_v<scalar_t, double> ? Type::kFloat64
                                : std::is_same_v<scalar_t, __half> ? Type::kFloat16
                                                                   : Type::kBFloat16;

// Relative rounding error of one stored number.
template <typename scalar_t>
inline constexpr double kRounding = std::is_same_v<scalar_t, float>    ? 0x1p-24
                                    : std::is_same_v<scalar_t, double> ? 0x1p-53
                                    : std::is_same_v<scalar_t, __half> ? 0x1p-11
                                                                       : 0x1p-8;

// `count` numbers in a block of memory of their own; the address sanitizer guards both ends. With a
// shift the first lies one element behind a 16-byte boundary.
template <typename scalar_t>
class Buffer {
 public:
  explicit Buffer(size_t count, bool shifted = false)
      : count_(count),
        offset_(shifted ? 1 : 0),
        memory_(new char[std::max<size_t>(1, (count + offset_) * sizeof(scalar_t))]) {
    std::memset(memory_.get(), 0xff, (count + offset_) * sizeof(scalar_t));  // NaN, or -1
  }

  scalar_t* data() { return reinterpret_cast<scalar_t*>(memory_.get()) + offset_; }
  const scalar_t* data() const {
    return reinterpret_cast<const scalar_t*>(memory_.get()) + offset_;
  }
  size_t size() const { return count_; }
  scalar_t& operator[](size_t i) { return data()[i]; }
  const scalar_t& operator[](size_t i) const { return data()[i]; }
  double value(size_t i) const { return static_cast<double>(ltdd::cuda::widen(data()[i])); }

 private:
  size_t count_, offset_;
  std::unique_ptr<char[]> memory_;
};

// A number in [-1, 1) for each index of each stream: the same in every run.
double number(uint64_t stream, uint64_t index);

template <typename scalar_t>
Buffer<scalar_t> numbers(uint64_t stream, size_t count, double center = 0.0, double scale = 1.0,
                         bool shifted = false) {
  Buffer<scalar_t> buffer(count, shifted);
  for (size_t i = 0; i < count; ++i)
    buffer[i] = ltdd::cuda::narrow<scalar_t>(
        static_cast<ltdd::cuda::acc_type<scalar_t>>(center + scale * number(stream, i)));
  return buffer;
}

// Fails the run unless |got - expected| <= tolerance; two NaN, or two equal infinities, agree.
void expect_close(const std::string& what, size_t index, double got, double expected,
                  double tolerance);
void expect(bool holds, const std::string& what);

// Remembers the bits of an output, to be compared between thread orders.
void record(const void* data, size_t bytes);

template <typename scalar_t>
void record(const Buffer<scalar_t>& buffer) {
  record(buffer.data(), buffer.size() * sizeof(scalar_t));
}

// N, C, H, W and a layout; index() is where the element lies in memory.
struct Shape {
  int64_t n, c;
  int h, w;
  bool channels_last;

  int64_t s() const { return int64_t(h) * w; }
  size_t elements() const { return static_cast<size_t>(n * c * s()); }
  size_t rows() const { return static_cast<size_t>(n * c); }
  size_t index(int64_t row, int64_t s_index) const {
    return static_cast<size_t>(channels_last ? (row / c * s() + s_index) * c + row % c
                                             : row * s() + s_index);
  }
  Activation activation(Type type) const { return {type, n, c, h, w, channels_last}; }
  std::string text() const;
};

// Index of the output element that element s of a row goes to, or -1; planes are pooled by 2x2.
inline int64_t output_of(const Shape& shape, int64_t s, bool pool) {
  if (!pool) return s;
  const int64_t line = s / shape.w / 2, column = s % shape.w / 2;
  if (line >= shape.h / 2 || column >= shape.w / 2) return -1;
  return line * (shape.w / 2) + column;
}

}  // namespace harness

int list_launches();
void test_row_moments();
void test_bn_act_moments();
void test_bn_max_moments();
void test_norm_act();
void test_class_moments();
void test_align_loss();
void test_large_offsets();
void test_number_types();
