// Products of matrices of bfloat16 by tiles (AMX), and the matrices that images become. Included by
// isa_amx.cpp after panel_kernels.h, see vec.h.
//
// A tile has 16 rows of 64 bytes. A product takes 16 x 32 numbers from the left and 32 x 16 from
// the right, these as 16 rows of pairs, and adds to 16 x 16 sums in float. Four tiles of sums are
// held at once. A float is the sum of two parts that bfloat16 has, up to 2^-17 of it; of their four
// products the least is left out.

constexpr int64_t kSide = 16, kDepth = 32, kBlock = 2 * kSide;
constexpr int64_t kTileBytes = 1024;

template <typename scalar_t>
constexpr int64_t kParts = sizeof(scalar_t) == sizeof(float) ? 2 : 1;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static constexpr TileShapes kTileShapes;  // GCC's instruction names but the first of its bytes

// Tiles are in use while this lives. GCC's tile instructions do not say that they read memory.
struct TilesInUse {
  TilesInUse() {
    asm volatile("" ::: "memory");
    _tile_loadconfig(&kTileShapes);
  }
  ~TilesInUse() { _tile_release(); }
};

// Two tiles side by side or below each other, in bytes: between rows, to the second tile, to the
// lower part of a float, to the next step along the depth.
struct Pair {
  const char* at;
  int64_t stride, second, part, step;
};

// The tiles of sums 0 to 3 (left first and second times right first, then right second) += the
// products of all steps; without `wide` 0 and 1 alone.
template <int64_t parts, bool wide>
[[gnu::always_inline]] static inline void add_products(Pair left, Pair right, int64_t steps) {
  for (int64_t i = 0; i < steps; ++i, left.at += left.step, right.at += right.step) {
    for (int64_t product = 0; product < 2 * parts - 1; ++product) {
      const char* const a = left.at + (product == 1 ? left.part : 0);
      const char* const b = right.at + (product == 2 ? right.part : 0);
      _tile_loadd(4, a, left.stride);
      _tile_loadd(5, a + left.second, left.stride);
      if (product != 1) {
        _tile_loadd(6, b, right.stride);
        if constexpr (wide) _tile_loadd(7, b + right.second, right.stride);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if constexpr (wide) {
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
}

// Images as the rows of a matrix, a pixel each. Rows of zeros lie to the right of every line of an
// image, below its last and around all of them, so that what a tap sees of a pixel is always as
// many rows away. A place is a row that a pixel may have, counted from the first.
struct Field {
  int64_t images, height, width;

  int64_t across() const { return width + 1; }
  int64_t places() const { return images * (height + 1) * across(); }
  int64_t whole() const { return rounded_up(places(), kBlock); }  // places of whole tiles
  int64_t margin() const { return across() + 1; }                 // rows before the first place
  // Enough for what the taps see of a tile that begins at the last pixel.
  int64_t rows() const { return whole() + kSide + 2 * margin(); }
  // The row that a tap sees of place 0.
  int64_t seen(int64_t tap) const { return margin() + (tap / 3 - 1) * across() + tap % 3 - 1; }
};

// The pixel of every row, or -1.
static void find_pixels(const Field& field, int32_t* pixels) {
  for (int64_t row = 0; row < field.rows(); ++row) pixels[row] = -1;
  int64_t row = field.margin();
  int32_t pixel = 0;
  for (int64_t n = 0; n < field.images; ++n, row += field.across())
    for (int64_t i = 0; i < field.height; ++i, ++row)
      for (int64_t j = 0; j < field.width; ++j) pixels[row++] = pixel++;
}

// The first places of tiles of 16 that together hold every pixel; returns how many there are.
static int64_t find_tiles(const Field& field, const int32_t* pixels, int32_t* tiles) {
  int64_t count = 0;
  for (int64_t place = 0; place < field.places();)
    if (pixels[field.margin() + place] >= 0) {
      tiles[count++] = static_cast<int32_t>(place);
      place += kSide;
    } else {
      ++place;
    }
  return count;
}

static inline VecU joined(const VecF& low, const VecF& high) {
  return bits_as<VecU>(_mm512_cvtne2ps_pbh(bits_as<__m512>(high), bits_as<__m512>(low)));
}

// 32 channels of a pixel as numbers, up to `count` of them, the others zero; in parts.
static inline void numbers_of(const BFloat16* from, int64_t count, VecU (&to)[1]) {
  const auto mask = static_cast<__mmask32>(count < kDepth ? (1u << count) - 1u : ~0u);
  to[0] = bits_as<VecU>(_mm512_maskz_loadu_epi16(mask, from));
}

static inline void numbers_of(const float* from, int64_t count, VecU (&to)[2]) {
  VecF rest[2] = {}, high[2];
  for (int64_t i = 0; i < least(2, (count + kSide - 1) / kSide); ++i)
    rest[i] = get(from + i * kSide, least(kSide, count - i * kSide));
  to[0] = joined(rest[0], rest[1]);
  high[0] = bits_as<VecF>(to[0] << 16);  // of the even numbers
  high[1] = bits_as<VecF>(to[0] & 0xffff0000u);
  VecF even, odd;
  constexpr auto lanes = std::make_integer_sequence<int64_t, kSide>{};
  interleave<float>(high[0], high[1], even, odd, lanes);
  to[1] = joined(rest[0] - even, rest[1] - odd);
}

// Calls visit(numbers, row, c) for every 32 of `channels` of every row.
template <typename scalar_t, typename Visit>
[[gnu::always_inline]] static inline void for_numbers(const scalar_t* images, const int32_t* pixels,
                                                      int64_t rows, int64_t channels,
                                                      const Visit& visit) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < channels; c += kDepth) {
      VecU numbers[kParts<scalar_t>] = {};
      if (pixels[row] >= 0)
        numbers_of(images + pixels[row] * channels + c, least(kDepth, channels - c), numbers);
      visit(numbers, row, c);
    }
}

// to[row, part, padded] of a field.
template <typename scalar_t>
static void fill_field(const scalar_t* images, const int32_t* pixels, int64_t rows,
                       int64_t channels, uint16_t* to) {
  constexpr int64_t parts = kParts<scalar_t>;
  const int64_t padded = rounded_up(channels, kDepth);
  for_numbers(images, pixels, rows, channels,
              [&](const VecU(&numbers)[parts], int64_t row, int64_t c) {
                for (int64_t part = 0; part < parts; ++part)
                  store_bits(to + (row * parts + part) * padded + c, numbers[part]);
              });
}

// to[numbers of a, b], 64 of them, in pairs: one of a, one of b.
static inline void store_pairs(const VecU& a, const VecU& b, uint32_t* to) {
  HalfVecU first[2], second[2];
  store_bits(first, a);
  store_bits(second, b);
  for (int64_t i = 0; i < 2; ++i)
    store_bits(to + i * kSide, widen_bits(first[i]) | widen_bits(second[i]) << 16);
}

// The rows of v become its columns, in 16 lanes of 32 bits.
[[gnu::always_inline]] static inline void transpose(VecF (&v)[kSide]) {
  constexpr auto lanes = std::make_integer_sequence<int64_t, kSide>{};
  VecF w[kSide];
#pragma GCC unroll 4
  for (int64_t round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kSide / 2; ++i)
      interleave<float>(v[i], v[i + kSide / 2], w[2 * i], w[2 * i + 1], lanes);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kSide; ++i) v[i] = w[i];
  }
}

// to[channel / 32, place / 32, part, channel % 32, place % 32] of images: tiles in the order in
// which products along the places read them. `places` is a multiple of 32.
template <typename scalar_t>
static void transpose_images(const scalar_t* images, const int32_t* pixels, int64_t places,
                             int64_t channels, uint16_t* to) {
  constexpr int64_t parts = kParts<scalar_t>, of_tiles = kBlock * kDepth;
  for (int64_t place = 0; place < places; place += kSide)
    for (int64_t c = 0; c < channels; c += kDepth) {
      VecF rows[parts][kSide];
      for (int64_t i = 0; i < kSide; ++i) {
        VecU numbers[parts] = {};
        if (const int32_t pixel = pixels[place + i]; pixel >= 0)
          numbers_of(images + pixel * channels + c, least(kDepth, channels - c), numbers);
        for (int64_t part = 0; part < parts; ++part) rows[part][i] = bits_as<VecF>(numbers[part]);
      }
      for (int64_t part = 0; part < parts; ++part) {
        transpose(rows[part]);
        const int64_t tiles = (c / kDepth * (places / kDepth) + place / kDepth) * parts + part;
        uint16_t* at = to + tiles * of_tiles + place % kDepth;
        for (int64_t i = 0; i < kSide; ++i, at += 2 * kDepth) {
          const VecU pair = bits_as<VecU>(rows[part][i]);
          store_bits(at, narrow_bits(pair & 0xffffu));
          store_bits(at + kDepth, narrow_bits(pair >> 16));
        }
      }
    }
}

// to[number / 32, pair of rows, part, 32 pairs] of [row, part, width], where `pairs` of rows are
// (0, 1), (2, 3) ...
template <int64_t parts>
static void pair_rows(const uint16_t* from, int64_t pairs, int64_t width, uint32_t* to) {
  for (int64_t pair = 0; pair < pairs; ++pair)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t c = 0; c < width; c += kDepth) {
        const uint16_t* row = from + (2 * pair * parts + part) * width + c;
        store_pairs(load_bits<VecU>(row), load_bits<VecU>(row + parts * width),
                    to + ((c / kDepth * pairs + pair) * parts + part) * kDepth);
      }
}
