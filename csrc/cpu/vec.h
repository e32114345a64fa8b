// Vectors of the instruction set a kernel file is compiled for. Included by isa_*.cpp only, inside
// the namespace of that instruction set and after it was chosen: everything here has internal
// linkage, so no function compiled for AVX-512 can stand in for one of the baseline.
//
// LTDD_VECTOR_BYTES is 16, 32 or 64. GCC and Clang vector types do the arithmetic; intrinsics are
// used only where the language has no word, or the compiler makes poor code of it: conversion of
// 16-bit types, masked access, streaming stores. Plain vectors of 16 bytes are what NEON has.

constexpr int64_t kVectorBytes = LTDD_VECTOR_BYTES;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Storage of the 16-bit types: their bits. They are widened exactly and rounded to nearest even.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <typename acc_t>
struct VecOf {
  typedef acc_t type __attribute__((vector_size(kVectorBytes)));
};
template <typename acc_t>
using Vec = typename VecOf<acc_t>::type;

template <typename acc_t>
constexpr int64_t kWidth = kVectorBytes / static_cast<int64_t>(sizeof(acc_t));

using VecI = int32_t __attribute__((vector_size(kVectorBytes)));
using VecU = uint32_t __attribute__((vector_size(kVectorBytes)));
using HalfVecU = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

template <typename scalar_t>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename scalar_t>
using Acc = typename AccOf<scalar_t>::type;

template <typename to_t, typename from_t>
static inline to_t bits_as(const from_t& from) {
  static_assert(sizeof(to_t) == sizeof(from_t));
  to_t to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename vec_t>
static inline vec_t load_bits(const void* from) {
  vec_t value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <typename vec_t>
static inline void store_bits(void* to, const vec_t& value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

// Asks for the bytes of `vectors` vectors from x on, once per cache line.
template <int64_t vectors, typename scalar_t>
static inline void prefetch(const scalar_t* x) {
  constexpr int64_t bytes = vectors * kVectorBytes / static_cast<int64_t>(sizeof(float)) *
                            static_cast<int64_t>(sizeof(scalar_t));
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(reinterpret_cast<const char*>(x) + i);
}

template <typename acc_t, int64_t... i>
static inline Vec<acc_t> repeat(acc_t value, std::integer_sequence<int64_t, i...>) {
  return Vec<acc_t>{(static_cast<void>(i), value)...};
}

template <typename acc_t>
static inline Vec<acc_t> broadcast(acc_t value) {
  return repeat(value, std::make_integer_sequence<int64_t, kWidth<acc_t>>{});
}

// Lane i of the result is lane i + by of v, going around.
template <typename acc_t, int64_t by, int64_t... i>
static inline Vec<acc_t> rotated(const Vec<acc_t>& v, std::integer_sequence<int64_t, i...>) {
  return __builtin_shufflevector(v, v, ((i + by) % kWidth<acc_t>)...);
}

template <typename acc_t, int64_t half = kWidth<acc_t> / 2>
static inline acc_t sum_of(const Vec<acc_t>& v) {
  if constexpr (half == 0) {
    return v[0];
  } else {
    const auto lanes = std::make_integer_sequence<int64_t, kWidth<acc_t>>{};
    return sum_of<acc_t, half / 2>(v + rotated<acc_t, half>(v, lanes));
  }
}

// bfloat16 is the upper half of a float. A half's exponent and fraction, moved to their
// place in a float, are 2^112 too small; scaling is exact and repairs subnormals on the way.
static inline VecU widen_bits(const HalfVecU& bits) {
#if LTDD_VECTOR_BYTES == 64  // GCC 12 converts vectors of this size in two halves
  return bits_as<VecU>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(bits)));
#elif LTDD_VECTOR_BYTES == 32
  return bits_as<VecU>(_mm256_cvtepu16_epi32(bits_as<__m128i>(bits)));
#elif defined(__aarch64__)  // GCC 12 converts one element after the other
  return bits_as<VecU>(vmovl_u16(bits_as<uint16x4_t>(bits)));
#else
  return __builtin_convertvector(bits, VecU);
#endif
}

static inline HalfVecU narrow_bits(const VecU& bits) {
#if LTDD_VECTOR_BYTES == 64
  return bits_as<HalfVecU>(_mm512_maskz_cvtepi32_epi16(0xffff, bits_as<__m512i>(bits)));
#else
  return __builtin_convertvector(bits, HalfVecU);
#endif
}

static inline Vec<float> widen_bf16(const HalfVecU& bits) {
#if LTDD_VECTOR_BYTES == 64  // one instruction instead of two
  const __m512i from = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0,
                                        6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
  const __m512i words = _mm512_castsi256_si512(bits_as<__m256i>(bits));
  return bits_as<Vec<float>>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, words));
#else
  return bits_as<Vec<float>>(widen_bits(bits) << 16);
#endif
}

static inline Vec<float> widen_half(const HalfVecU& bits) {
#if LTDD_VECTOR_BYTES == 64
  return bits_as<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(bits)));
#elif LTDD_VECTOR_BYTES == 32
  return bits_as<Vec<float>>(_mm256_cvtph_ps(bits_as<__m128i>(bits)));
#elif defined(__aarch64__)
  return bits_as<Vec<float>>(vcvt_f32_f16(bits_as<float16x4_t>(bits)));
#else
  const VecU wide = widen_bits(bits);
  const VecU sign = (wide & 0x8000u) << 16, magnitude = (wide & 0x7fffu) << 13;
  const VecU scaled = bits_as<VecU>(bits_as<Vec<float>>(magnitude) * 0x1p112f);
  const VecU special = bits_as<VecU>((wide & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return bits_as<Vec<float>>(scaled | special | sign);
#endif
}

static inline HalfVecU narrow_bf16(const Vec<float>& value) {
  const VecU bits = bits_as<VecU>(value);
  const VecU rounded = (bits + 0x7fffu) + ((bits >> 16) & 1u);
  const VecU whole = value != value ? VecU{} + 0x7fc00000u : rounded;
#if LTDD_VECTOR_BYTES == 64  // the upper halves by one instruction instead of three
  const __m512i from = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27,
                                        25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i halves = _mm512_maskz_permutexvar_epi16(0xffff, from, bits_as<__m512i>(whole));
  return load_bits<HalfVecU>(&halves);
#else
  return narrow_bits(whole >> 16);
#endif
}

static inline HalfVecU narrow_half(const Vec<float>& value) {
#if LTDD_VECTOR_BYTES == 64
  return bits_as<HalfVecU>(
      _mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif LTDD_VECTOR_BYTES == 32
  return bits_as<HalfVecU>(_mm256_cvtps_ph(bits_as<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  return bits_as<HalfVecU>(vcvt_f16_f32(bits_as<float32x4_t>(value)));
#else
  const VecU bits = bits_as<VecU>(value);
  const VecU sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Normal: rebias the exponent and round the 13 bits that go. Subnormal: let an addition of 0.5
  // (whose last bit is worth a half's smallest step) do the rounding.
  const VecU normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const VecU small = bits_as<VecU>(bits_as<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  const VecU is_small = bits_as<VecU>(magnitude < (113u << 23));
  const VecU is_large = bits_as<VecU>(magnitude >= 0x47800000u);  // 65536: infinity
  const VecU is_nan = bits_as<VecU>(magnitude > 0x7f800000u);
  VecU half = (small & is_small) | (normal & ~is_small);
  half = (half & ~is_large) | (is_large & (0x7c00u | (is_nan & 0x0200u)));
  return narrow_bits(half | sign);
#endif
}

// Whole vectors.
static inline Vec<float> load(const float* x) { return load_bits<Vec<float>>(x); }
static inline Vec<double> load(const double* x) { return load_bits<Vec<double>>(x); }
static inline Vec<float> load(const BFloat16* x) { return widen_bf16(load_bits<HalfVecU>(x)); }
static inline Vec<float> load(const Half* x) { return widen_half(load_bits<HalfVecU>(x)); }

static inline void store(float* to, const Vec<float>& v) { store_bits(to, v); }
static inline void store(double* to, const Vec<double>& v) { store_bits(to, v); }
static inline void store(BFloat16* to, const Vec<float>& v) { store_bits(to, narrow_bf16(v)); }
static inline void store(Half* to, const Vec<float>& v) { store_bits(to, narrow_half(v)); }

// to[0 .. width) += v, in double.
template <typename acc_t>
static inline void add_widened(double* to, const Vec<acc_t>& v) {
  if constexpr (sizeof(acc_t) == sizeof(double)) {
    store(to, load(to) + v);
  } else {
    using Half = float __attribute__((vector_size(kVectorBytes / 2)));
    Half parts[2];
    store_bits(parts, v);
    for (int64_t i = 0; i < 2; ++i) {
      double* half = to + i * kWidth<double>;
      store(half, load(half) + __builtin_convertvector(parts[i], Vec<double>));
    }
  }
}

// The first `count` < width elements; the rest reads as zero.
template <typename scalar_t>
static inline Vec<Acc<scalar_t>> load_some(const scalar_t* x, int64_t count) {
#if LTDD_VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1u;
  if constexpr (sizeof(scalar_t) == 8) {
    return bits_as<Vec<double>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), x));
  } else if constexpr (sizeof(scalar_t) == 4) {
    return bits_as<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x));
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), x);
    scalar_t whole[kWidth<float>];
    store_bits(whole, bits);
    return load(whole);
  }
#else
  scalar_t whole[kWidth<Acc<scalar_t>>] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = x[i];
  return load(whole);
#endif
}

template <typename scalar_t>
static inline void store_some(scalar_t* to, const Vec<Acc<scalar_t>>& v, int64_t count) {
#if LTDD_VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1u;
  if constexpr (sizeof(scalar_t) == 8) {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), bits_as<__m512d>(v));
  } else if constexpr (sizeof(scalar_t) == 4) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), bits_as<__m512>(v));
  } else {
    scalar_t whole[kWidth<float>];
    store(whole, v);
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(mask), load_bits<__m256i>(whole));
  }
#else
  scalar_t whole[kWidth<Acc<scalar_t>>];
  store(whole, v);
  for (int64_t i = 0; i < count; ++i) to[i] = whole[i];
#endif
}

// The nearest values that the storage type has, if it is a 16-bit type: differences between numbers
// of few bits are exact, whereas subtracting a pivot of 24 bits from many of them rounds one way.
template <typename scalar_t>
static inline Vec<Acc<scalar_t>> on_grid(const Vec<Acc<scalar_t>>& v) {
  if constexpr (sizeof(scalar_t) != 2) return v;
  scalar_t stored[kWidth<Acc<scalar_t>>];
  store(stored, v);
  return load(stored);
}

// The first `count` lanes, zero in the others.
template <typename acc_t>
static inline Vec<acc_t> keep_first(const Vec<acc_t>& v, int64_t count) {
  acc_t index[kWidth<acc_t>];
  for (int64_t i = 0; i < kWidth<acc_t>; ++i) index[i] = static_cast<acc_t>(i);
  return load(index) < static_cast<acc_t>(count) ? v : Vec<acc_t>{};
}

// Past the caches, for an output that will not be read before it is evicted; `to` must be aligned
// to the bytes stored.
template <typename scalar_t>
static inline void store_streaming(scalar_t* to, const Vec<Acc<scalar_t>>& v) {
  scalar_t whole[kWidth<Acc<scalar_t>>];
  store(whole, v);
#if defined(__x86_64__)
  if constexpr (sizeof(whole) == 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), load_bits<__m512i>(whole));
  else if constexpr (sizeof(whole) == 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), load_bits<__m256i>(whole));
  else if constexpr (sizeof(whole) == 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), load_bits<__m128i>(whole));
  else
    store(to, v);
#elif defined(__aarch64__)  // a hint that only pairs of registers have
  struct [[gnu::may_alias]] Bytes {
    char at[sizeof(whole)];
  };
  Bytes& target = *reinterpret_cast<Bytes*>(to);
  if constexpr (sizeof(whole) == 16) {
    const float64x2_t pair = load_bits<float64x2_t>(whole);
    asm("stnp %d1, %d2, %0" : "=Q"(target) : "w"(pair[0]), "w"(pair[1]));
  } else {
    const float32x2_t pair = load_bits<float32x2_t>(whole);
    asm("stnp %s1, %s2, %0" : "=Q"(target) : "w"(pair[0]), "w"(pair[1]));
  }
#else
  store(to, v);
#endif
}

// low, high = a and b interleaved.
template <typename acc_t, int64_t... i>
static inline void interleave(const Vec<acc_t>& a, const Vec<acc_t>& b, Vec<acc_t>& low,
                              Vec<acc_t>& high, std::integer_sequence<int64_t, i...>) {
  constexpr int64_t w = kWidth<acc_t>;
  low = __builtin_shufflevector(a, b, (i / 2 + i % 2 * w)...);
  high = __builtin_shufflevector(a, b, (w / 2 + i / 2 + i % 2 * w)...);
}

// One step of sums_of_each: adds the halves of every segment of `a` and `b`, which leaves segments
// half as long, those of `a` and `b` in turn.
template <typename acc_t, int64_t segment, int64_t... i>
static inline Vec<acc_t> fold(const Vec<acc_t>& a, const Vec<acc_t>& b,
                              std::integer_sequence<int64_t, i...>) {
  constexpr int64_t w = kWidth<acc_t>, half = segment / 2;
  return __builtin_shufflevector(
             a, b, (i / segment * segment + i % half + (i % segment < half ? 0 : w))...) +
         __builtin_shufflevector(
             a, b, (i / segment * segment + i % half + (i % segment < half ? half : w + half))...);
}

// Lane i of the result is the sum over the lanes of v[i]; v is a square of vectors, overwritten.
template <typename acc_t, int64_t segment = kWidth<acc_t>>
[[gnu::always_inline]] static inline Vec<acc_t> sums_of_each(Vec<acc_t>* v) {
  if constexpr (segment == 1) {
    return v[0];
  } else {
#pragma GCC unroll 8
    for (int64_t i = 0; i < segment / 2; ++i)
      v[i] = fold<acc_t, segment>(v[i], v[i + segment / 2],
                                  std::make_integer_sequence<int64_t, kWidth<acc_t>>{});
    return sums_of_each<acc_t, segment / 2>(v);
  }
}
