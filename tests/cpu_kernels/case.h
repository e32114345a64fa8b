// Tensors in every storage and layout, and what a kernel's results are held against.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "cpu/kernels.h"

using ltdd::Kernels;
using ltdd::Storage;

inline int failures = 0;

struct Shape {
  int64_t n, c, height, width;
  int64_t s() const { return height * width; }
  int64_t size() const { return n * c * s(); }
};

// Room of exactly so many floats that begins with a cache line.
class Lines {
 public:
  explicit Lines(int64_t size)
      : at_(static_cast<float*>(::operator new(size * sizeof(float), kLine))) {}
  ~Lines() { ::operator delete(at_, kLine); }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;
  float* data() const { return at_; }

 private:
  static constexpr std::align_val_t kLine{64};
  float* at_;
};

// The nearest value that a 16-bit type has, by definition, because not every compiler has the
// types: 11 or 8 binary digits, down to the least subnormal number; ties to even.
inline double nearest(double value, Storage storage) {
  const bool half = storage == Storage::kHalf;
  int exponent;
  std::frexp(value, &exponent);
  const double step =
      std::ldexp(1.0, half ? std::max(exponent - 11, -24) : std::max(exponent - 8, -133));
  return std::nearbyint(value / step) * step;
}

// The bits of a finite value that half precision has, and the value of such bits.
inline uint16_t half_bits(double value) {
  int exponent;
  const double fraction = std::frexp(std::abs(value), &exponent);
  const bool subnormal = fraction == 0 || exponent < -13;
  const double bits = subnormal ? std::ldexp(fraction, exponent + 24)
                                : std::ldexp(exponent + 14, 10) + (2 * fraction - 1) * 1024;
  return static_cast<uint16_t>(bits) | (std::signbit(value) ? 0x8000 : 0);
}

inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size =
      std::ldexp(exponent > 0 ? 1024 + fraction : fraction, exponent > 0 ? exponent - 25 : -24);
  return bits & 0x8000 ? -size : size;
}

// A value as it is after storage.
inline double stored(double value, Storage storage) {
  if (storage == Storage::kDouble) return value;
  if (storage == Storage::kFloat) return static_cast<float>(value);
  return nearest(value, storage);
}

inline int64_t item_bytes(Storage storage) {
  return storage == Storage::kDouble ? 8 : storage == Storage::kFloat ? 4 : 2;
}

inline std::vector<char> pack(const std::vector<double>& values, Storage storage) {
  std::vector<char> bytes(values.size() * item_bytes(storage));
  for (size_t i = 0; i < values.size(); ++i) {
    char* to = bytes.data() + i * item_bytes(storage);
    const float narrow = static_cast<float>(values[i]);
    const uint16_t half = half_bits(nearest(values[i], Storage::kHalf));
    uint32_t bits;
    std::memcpy(&bits, &narrow, 4);
    const uint16_t upper = static_cast<uint16_t>(bits >> 16);  // bfloat16, of a value that it has
    switch (storage) {
      case Storage::kDouble:
        std::memcpy(to, &values[i], 8);
        break;
      case Storage::kFloat:
        std::memcpy(to, &narrow, 4);
        break;
      case Storage::kBFloat16:
        std::memcpy(to, &upper, 2);
        break;
      case Storage::kHalf:
        std::memcpy(to, &half, 2);
        break;
    }
  }
  return bytes;
}

inline double unpack(const std::vector<char>& bytes, int64_t i, Storage storage) {
  const char* from = bytes.data() + i * item_bytes(storage);
  if (storage == Storage::kDouble) {
    double value;
    std::memcpy(&value, from, 8);
    return value;
  }
  float value = 0;
  if (storage == Storage::kFloat) {
    std::memcpy(&value, from, 4);
  } else if (storage == Storage::kBFloat16) {
    uint16_t upper;
    std::memcpy(&upper, from, 2);
    const uint32_t bits = static_cast<uint32_t>(upper) << 16;
    std::memcpy(&value, &bits, 4);
  } else {
    uint16_t half;
    std::memcpy(&half, from, 2);
    return half_value(half);
  }
  return value;
}

// Tensors in the order (n, c, pixel), whatever their layout in memory.
struct Case {
  const char* isa;
  const Kernels& run;
  Storage storage;
  Shape shape;
  bool pixels;  // NHWC

  int64_t at(int64_t n, int64_t c, int64_t p, int64_t size) const {
    return pixels ? (n * size + p) * shape.c + c : (n * shape.c + c) * size + p;
  }
  Storage row_storage() const {
    return storage == Storage::kDouble ? Storage::kDouble : Storage::kFloat;
  }
  double rounding() const {
    return storage == Storage::kBFloat16 ? 1.0 / 128
           : storage == Storage::kHalf   ? 1.0 / 1024
                                         : 2e-6;
  }

  void expect(const char* what, double got, double want, double scale, double tolerance) const {
    if (std::abs(got - want) <= tolerance * (std::max(scale, std::abs(want)) + 1e-6)) return;
    if (++failures <= 20)
      std::printf("%s storage %d %s %jdx%jdx%jdx%jd %s: got %.9g, want %.9g\n", isa,
                  static_cast<int>(storage), pixels ? "NHWC" : "NCHW", intmax_t{shape.n},
                  intmax_t{shape.c}, intmax_t{shape.height}, intmax_t{shape.width}, what, got,
                  want);
  }

  template <typename Rows, typename Pixels, typename Args>
  void call(Rows rows, Pixels by_pixel, const Args& args) const {
    if (!pixels) return rows(args, 0, shape.n * shape.c);
    const int64_t half = shape.c / 2;  // an uneven split of the channels
    for (int64_t i = 0; i < shape.n; ++i) {
      by_pixel(args, i, 0, half);
      by_pixel(args, i, half, shape.c);
    }
  }
};

inline std::vector<double> random_values(int64_t count, std::mt19937& generator, Storage storage) {
  std::normal_distribution<double> normal(0.5, 1.5);
  std::vector<double> values(count);
  for (double& value : values) value = stored(normal(generator), storage);
  return values;
}
