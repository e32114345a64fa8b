// 3x3 convolution of NHWC images by tiles (AMX), by its definition. Included by isa_amx.cpp after
// tile_kernels.h, see vec.h.
//
// y is a product of matrices: a row a pixel, of all that the nine taps see of it. What a tap sees
// lies a fixed number of rows away in a field of images, so nothing is copied for it; of up to
// kFewChannels channels the neighbourhoods of a pixel are made one short row. The gradient of the
// taps is a product along the pixels, for which x is transposed: a tap then shifts the rows.

constexpr int64_t kPlacesTogether = 1024, kPlacesOfTaps = 1024;  // what the caches hold

// The rows of the taps as a matrix: `taps` times `depth`.
struct TapRows {
  bool few;
  int64_t taps, depth;

  explicit TapRows(int64_t in)
      : few(in <= kFewChannels), taps(few ? 1 : 9), depth(rounded_up(few ? 9 * in : in, kDepth)) {}
  int64_t rows() const { return taps * depth; }
};

// Numbers of 16 bits that fit into so many floats, in whole cache lines.
static inline int64_t floats_for(int64_t numbers) { return rounded_up((numbers + 1) / 2, kSide); }

static inline int64_t images_for(int64_t places, int64_t height, int64_t width) {
  return most(1, places / Field{1, height, width}.places());
}

static int64_t tile_images_together(int64_t height, int64_t width) {
  return images_for(kPlacesTogether, height, width);
}

// The pixel of every row, the tiles, the field, and the neighbourhoods.
template <int64_t parts>
struct TileScratch {
  int64_t pixels, tiles, field, neighbourhoods;

  TileScratch(const Field& f, int64_t in) {
    const TapRows taps(in);
    pixels = tiles = rounded_up(f.rows(), kSide);
    field = floats_for(f.rows() * parts * rounded_up(in, kDepth));
    neighbourhoods = taps.few ? floats_for((f.whole() + kSide) * parts * taps.depth + kSide) : 0;
  }
  int64_t size() const { return pixels + tiles + field + neighbourhoods; }
};

template <int64_t parts>
static int64_t tile_scratch_size(int64_t height, int64_t width, int64_t in, int64_t) {
  return TileScratch<parts>({tile_images_together(height, width), height, width}, in).size();
}

// [out / 16, tap, depth / 32, part, 16 rows of pairs, 16]
template <int64_t parts>
static int64_t tile_packed_size(int64_t in, int64_t out) {
  return floats_for(TapRows(in).rows() * parts * rounded_up(out, kSide));
}

template <int64_t parts>
static void tile_pack(const float* taps, int64_t in, int64_t out, int64_t begin, int64_t end,
                      float* packed) {
  const TapRows matrix(in);
  // Of few channels all taps at once: their rows follow each other.
  const int64_t times = matrix.few ? 9 : 1, last = end == in ? matrix.depth : end;
  for (int64_t c = 0; c < rounded_up(out, kSide); c += kSide)
    for (int64_t t = 0; t < matrix.taps; ++t)
      for (int64_t k = begin; k < last; k += 2) {
        VecU high[2], low[2];
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t lanes = k + i < times * in ? least(kSide, out - c) : 0;
          const VecF value = lanes > 0 ? get(taps + (t * in + k + i) * out + c, lanes) : VecF{};
          const HalfVecU rounded = narrow_bf16(value);
          high[i] = widen_bits(rounded);
          low[i] = widen_bits(narrow_bf16(value - widen_bf16(rounded)));
        }
        const int64_t step = (c / kSide * matrix.taps + t) * (matrix.depth / kDepth) + k / kDepth;
        char* to = reinterpret_cast<char*>(packed) + step * parts * kTileBytes + k % kDepth * 32;
        store_bits(to, high[0] | high[1] << 16);
        if constexpr (parts == 2) store_bits(to + kTileBytes, low[0] | low[1] << 16);
      }
}

// to[place, part, depth]: what the nine taps see of a place, in [row, part, 32].
template <int64_t parts>
static void gather_neighbourhoods(const uint16_t* from, const Field& field, int64_t in,
                                  int64_t depth, uint16_t* to) {
  const int64_t places = field.whole() + kSide;
  __builtin_memset(to, 0, static_cast<size_t>(places * parts * depth) * sizeof(uint16_t));
  for (int64_t place = 0; place < places; ++place)
    for (int64_t part = 0; part < parts; ++part, to += depth)
      for (int64_t t = 0; t < 9; ++t)  // what is too much of one is overwritten by the next
        store_bits(to + t * in,
                   load_bits<HalfVecU>(from + ((field.seen(t) + place) * parts + part) * kDepth));
}

// Writes `count` of 32 outputs.
static inline void set_outputs(float* to, const VecF& low, const VecF& high, int64_t count,
                               bool stream) {
  set(to, low, least(kSide, count), stream);
  if (count > kSide) set(to + kSide, high, count - kSide, stream);
}

static inline void set_outputs(BFloat16* to, const VecF& low, const VecF& high, int64_t count,
                               bool stream) {
  const __m512i numbers = bits_as<__m512i>(joined(low, high));
  if (count < kBlock)
    _mm512_mask_storeu_epi16(to, static_cast<__mmask32>((1u << count) - 1u), numbers);
  else if (stream)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), numbers);
  else
    store_bits(to, numbers);
}

template <typename scalar_t, bool wide>
static inline void tile_outputs(const Conv3x3Args& a, const TapRows& taps, const Pair& left,
                                const int64_t (&shift)[9], const int32_t* first,
                                const int32_t* second, int64_t column, scalar_t* y, bool stream) {
  constexpr int64_t parts = kParts<scalar_t>;
  alignas(64) float sums[kBlock][kBlock];  // without `wide` the right half stays unused
  const int64_t steps = taps.depth / kDepth, of_column = taps.taps * steps * parts * kTileBytes;
  const char* packed = reinterpret_cast<const char*>(a.packed) + column / kSide * of_column;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (wide) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t t = 0; t < taps.taps; ++t) {
    Pair seen = left;
    seen.at += shift[t];
    const char* own = packed + t * steps * parts * kTileBytes;
    add_products<parts, wide>(seen, {own, 64, of_column, kTileBytes, parts * kTileBytes}, steps);
  }
  constexpr int64_t stride = sizeof(sums[0]);
  _tile_stored(0, sums[0], stride);
  _tile_stored(1, sums[kSide], stride);
  if constexpr (wide) {
    _tile_stored(2, sums[0] + kSide, stride);
    _tile_stored(3, sums[kSide] + kSide, stride);
  }
  const int64_t count = least(wide ? kBlock : kSide, a.out - column);
  const VecF bias[2] = {get(a.bias + column, least(kSide, count)),
                        count > kSide ? get(a.bias + column + kSide, count - kSide) : VecF{}};
  for (int64_t r = 0; r < kBlock; ++r)
    if (const int32_t pixel = r < kSide ? first[r] : second[r - kSide]; pixel >= 0)
      set_outputs(y + pixel * a.out + column, load(sums[r]) + bias[0],
                  load(sums[r] + kSide) + bias[1], count, stream);
}

template <typename scalar_t>
static void tile_forward(const Conv3x3Args& a, int64_t first, int64_t last, float* scratch) {
  constexpr int64_t parts = kParts<scalar_t>;
  const Field field{last - first, a.height, a.width};
  const TapRows taps(a.in);
  const TileScratch<parts> sizes(field, a.in);
  auto* const pixels = reinterpret_cast<int32_t*>(scratch);
  auto* const tiles = pixels + sizes.pixels;
  auto* const rows = reinterpret_cast<uint16_t*>(tiles + sizes.tiles);
  auto* const neighbourhoods = rows + 2 * sizes.field;
  const int64_t all = a.height * a.width;
  find_pixels(field, pixels);
  const int64_t count = find_tiles(field, pixels, tiles);
  fill_field(static_cast<const scalar_t*>(a.x) + first * all * a.in, pixels, field.rows(), a.in,
             rows);
  if (taps.few) gather_neighbourhoods<parts>(rows, field, a.in, taps.depth, neighbourhoods);

  const int64_t stride = parts * taps.depth * static_cast<int64_t>(sizeof(uint16_t));
  int64_t shift[9] = {};
  for (int64_t t = 0; t < taps.taps; ++t)
    if (!taps.few) shift[t] = field.seen(t) * stride;
  const char* matrix = reinterpret_cast<const char*>(taps.few ? neighbourhoods : rows);
  auto* y = static_cast<scalar_t*>(a.y) + first * all * a.out;
  const bool stream =
      a.stream && reinterpret_cast<uintptr_t>(y) % 64 == 0 && a.out * sizeof(scalar_t) % 64 == 0;
  const TilesInUse in_use;
  const int32_t* places = pixels + field.margin();
  for (int64_t i = 0; i < count; i += 2) {
    const int64_t place = tiles[i], other = tiles[least(i + 1, count - 1)];
    const Pair left{matrix + place * stride, stride, (other - place) * stride, stride / parts, 64};
    for (int64_t column = 0; column < a.out; column += kBlock)
      if (a.out - column > kSide)
        tile_outputs<scalar_t, true>(a, taps, left, shift, places + place, places + other, column,
                                     y, stream);
      else
        tile_outputs<scalar_t, false>(a, taps, left, shift, places + place, places + other, column,
                                      y, stream);
  }
  finish_streaming(stream);
}

static int64_t tile_images_of_taps(int64_t height, int64_t width) {
  return images_for(kPlacesOfTaps, height, width);
}

// The pixel of every row, the transposed grad_y, x in pairs of rows, its field and neighbourhoods.
template <int64_t parts>
struct TapScratch {
  int64_t pixels, transposed, pairs, field, neighbourhoods;

  TapScratch(const Field& f, int64_t in, int64_t out) {
    const TapRows taps(in);
    pixels = rounded_up(f.rows(), kSide);
    transposed = floats_for(parts * rounded_up(out, kBlock) * f.whole());
    pairs = f.rows() * parts * taps.depth;
    field = floats_for(f.rows() * parts * rounded_up(in, kDepth));
    neighbourhoods = taps.few ? floats_for((f.whole() + kSide) * parts * taps.depth + kSide) : 0;
  }
  int64_t size() const { return pixels + transposed + pairs + field + neighbourhoods; }
};

template <int64_t parts>
static int64_t tap_scratch_size(int64_t height, int64_t width, int64_t in, int64_t out) {
  return TapScratch<parts>({tile_images_of_taps(height, width), height, width}, in, out).size();
}

static int64_t tile_table_size(int64_t in, int64_t out) {
  return TapRows(in).rows() * rounded_up(out, kBlock);
}

// What the images add to the gradient of the taps, [out, tap, in] with out and in padded.
template <typename scalar_t>
static void tile_backward(const Conv3x3BackwardArgs& a, int64_t first, int64_t last, bool add,
                          float* table, float* scratch) {
  constexpr int64_t parts = kParts<scalar_t>;
  const Field field{last - first, a.height, a.width};
  const TapRows taps(a.in);
  const TapScratch<parts> sizes(field, a.in, a.out);
  auto* const pixels = reinterpret_cast<int32_t*>(scratch);
  auto* const transposed = reinterpret_cast<uint16_t*>(scratch + sizes.pixels);
  auto* const even = reinterpret_cast<uint32_t*>(scratch + sizes.pixels + sizes.transposed);
  auto* const rows = reinterpret_cast<uint16_t*>(even + sizes.pairs);
  const int64_t all = a.height * a.width;
  find_pixels(field, pixels);
  transpose_images(static_cast<const scalar_t*>(a.grad_y) + first * all * a.out,
                   pixels + field.margin(), field.whole(), a.out, transposed);
  fill_field(static_cast<const scalar_t*>(a.x) + first * all * a.in, pixels, field.rows(), a.in,
             rows);
  // The first row that a tap sees may be even or odd, and so may the first of the pairs.
  const int64_t pairs = (taps.few ? field.whole() : field.rows() - 1) / 2;
  uint32_t* const odd = even + pairs * parts * taps.depth;
  if (taps.few) {
    auto* const neighbourhoods = rows + 2 * sizes.field;
    gather_neighbourhoods<parts>(rows, field, a.in, taps.depth, neighbourhoods);
    pair_rows<parts>(neighbourhoods, pairs, taps.depth, even);
  } else {
    pair_rows<parts>(rows, pairs, taps.depth, even);
    pair_rows<parts>(rows + parts * taps.depth, pairs, taps.depth, odd);
  }

  constexpr int64_t of_line = kDepth * static_cast<int64_t>(sizeof(uint32_t)) * parts;
  const int64_t steps = field.whole() / kDepth, of_tiles = 2 * parts * kTileBytes;
  const int64_t table_row = taps.rows(), stride = table_row * static_cast<int64_t>(sizeof(float));
  const TilesInUse in_use;
  for (int64_t tap = 0; tap < taps.taps; ++tap)
    for (int64_t k = 0; k < taps.depth; k += kBlock)
      for (int64_t o = 0; o < a.out; o += kBlock) {
        float* const to = table + o * table_row + tap * taps.depth + k;
        if (add) {
          _tile_loadd(0, to, stride);
          _tile_loadd(1, to + kSide * table_row, stride);
          _tile_loadd(2, to + kSide, stride);
          _tile_loadd(3, to + kSide * table_row + kSide, stride);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        const int64_t seen = taps.few ? 0 : field.seen(tap);
        const auto* left =
            reinterpret_cast<const char*>(transposed) + o / kBlock * steps * of_tiles;
        const auto* right = reinterpret_cast<const char*>(seen % 2 == 0 ? even : odd) +
                            (k / kDepth * pairs + seen / 2) * of_line;
        add_products<parts, true>({left, 64, kTileBytes, 2 * kTileBytes, of_tiles},
                                  {right, of_line, 64, of_line / parts, kSide * of_line}, steps);
        _tile_stored(0, to, stride);
        _tile_stored(1, to + kSide * table_row, stride);
        _tile_stored(2, to + kSide, stride);
        _tile_stored(3, to + kSide * table_row + kSide, stride);
      }
}

// weight[out, 9, in] of input channels [begin, end) from all tables.
static void tile_unpack(const float* tables, int64_t count, int64_t in, int64_t out, int64_t begin,
                        int64_t end, float*, float* weight) {
  const TapRows taps(in);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t t = 0; t < 9; ++t) {
      const float* from = tables + o * taps.rows() + (taps.few ? t * in : t * taps.depth);
      for_vectors<float>(end - begin, [&](int64_t k, int64_t lanes) {
        VecF sum = get(from + begin + k, lanes);
        for (int64_t table = 1; table < count; ++table)
          sum += get(from + table * tile_table_size(in, out) + begin + k, lanes);
        set(weight + (o * 9 + t) * in + begin + k, sum, lanes, false);
      });
    }
}

template <typename scalar_t, int64_t parts = kParts<scalar_t>>
constexpr Conv3x3Kernels kTileConv3x3 = {
    {tile_images_together, tile_scratch_size<parts>, tile_packed_size<parts>, tile_pack<parts>,
     tile_forward<scalar_t>},
    {tile_images_of_taps, tap_scratch_size<parts>, tile_table_size, tile_backward<scalar_t>,
     tile_unpack, sum_pixels<scalar_t>}};
