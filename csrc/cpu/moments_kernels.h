// Moments of rows (NCHW) and of pixels (NHWC). Included by isa_*.cpp, see vec.h.
//
// A chunk is read twice: once from memory for its mean, the pivot, and once from the first-level
// cache for the sums of x - pivot and its square; while the second pass computes, it fetches the
// next chunk. Chunks are merged in double and in order. Chunks depend on the shape alone.

constexpr int64_t kChunk = 1024;        // elements of a row
constexpr int64_t kSmallRow = 96;       // rows up to here are transposed: one row per lane
constexpr int64_t kPixelChunk = 256;    // most pixels of a chunk
constexpr int64_t kChunkBytes = 65536;  // aim for the accumulators' bytes of a chunk, all channels
constexpr int64_t kGroup = 4;           // vectors of channels held in registers together

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename scalar_t>
static inline Moments<double> chunk_moments(const scalar_t* x, int64_t count) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  const int64_t whole = count / w * w, blocks = count / (4 * w) * (4 * w);
  Vec<acc_t> sum[4] = {};
  for (int64_t i = 0; i < blocks; i += 4 * w)
    for (int64_t j = 0; j < 4; ++j) sum[j] += load(x + i + j * w);
  for (int64_t i = blocks; i < whole; i += w) sum[0] += load(x + i);
  if (whole < count) sum[1] += load_some(x + whole, count - whole);
  const acc_t pivot =
      sum_of<acc_t>((sum[0] + sum[1]) + (sum[2] + sum[3])) / static_cast<acc_t>(count);

  const Vec<acc_t> pivots = broadcast<acc_t>(pivot);
  Vec<acc_t> d_sum[4] = {}, d2_sum[4] = {};
  const auto add = [&](int64_t j, const Vec<acc_t>& d) {
    d_sum[j] += d;
    d2_sum[j] += d * d;
  };
  for (int64_t i = 0; i < blocks; i += 4 * w)
    for (int64_t j = 0; j < 4; ++j) {
      __builtin_prefetch(x + i + j * w + kChunk);
      add(j, load(x + i + j * w) - pivots);
    }
  for (int64_t i = blocks; i < whole; i += w) add(0, load(x + i) - pivots);
  if (whole < count) {
    add(1, keep_first<acc_t>(load_some(x + whole, count - whole) - pivots, count - whole));
  }
  return from_shifted_sums<double>(
      static_cast<double>(count), pivot,
      sum_of<acc_t>((d_sum[0] + d_sum[1]) + (d_sum[2] + d_sum[3])),
      sum_of<acc_t>((d2_sum[0] + d2_sum[1]) + (d2_sum[2] + d2_sum[3])));
}

template <typename scalar_t>
static inline void moments_of_row(const scalar_t* x, int64_t s, Acc<scalar_t>* mean,
                                  Acc<scalar_t>* m2) {
  Moments<double> row = chunk_moments(x, least(kChunk, s));
  for (int64_t begin = kChunk; begin < s; begin += kChunk)
    row = merge(row, chunk_moments(x + begin, least(kChunk, s - begin)));
  *mean = static_cast<Acc<scalar_t>>(row.mean);
  *m2 = static_cast<Acc<scalar_t>>(row.m2);
}

// Loads one square of a block of short rows: lanes along the row. `readable` elements may be read
// from x on, so a load may run into the next row; rows that are not there read as zero.
template <typename scalar_t>
[[gnu::noinline]] static void load_last_tile(const scalar_t* x, int64_t rows, int64_t s,
                                             int64_t readable, int64_t e,
                                             Vec<Acc<scalar_t>>* tile) {
  constexpr int64_t w = kWidth<Acc<scalar_t>>;
  for (int64_t r = 0; r < w; ++r) {
    const int64_t at = r * s + e;
    tile[r] = r >= rows            ? Vec<Acc<scalar_t>>{}
              : at + w <= readable ? load(x + at)
                                   : load_some(x + at, readable - at);
  }
}

// As many short rows as a vector has lanes, transposed so that each lane is a row and no sum runs
// across lanes.
template <typename scalar_t>
static inline void moments_of_small_rows(const scalar_t* x, int64_t rows, int64_t s,
                                         int64_t readable, Acc<scalar_t>* mean, Acc<scalar_t>* m2) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  Vec<acc_t> columns[kSmallRow + w];  // columns[e]: element e of every row
  for (int64_t e = 0; e < s; e += w) {
    if (rows == w && (w - 1) * s + e + w <= readable)
      for (int64_t r = 0; r < w; ++r) columns[e + r] = load(x + r * s + e);
    else
      load_last_tile(x, rows, s, readable, e, columns + e);
    transpose<acc_t>(columns + e);
  }
  const acc_t inverse = acc_t(1) / static_cast<acc_t>(s);
  const int64_t fours = s / 4 * 4;
  Vec<acc_t> sum[4] = {};
  for (int64_t e = 0; e < fours; e += 4)
    for (int64_t j = 0; j < 4; ++j) sum[j] += columns[e + j];
  for (int64_t e = fours; e < s; ++e) sum[0] += columns[e];
  const Vec<acc_t> pivot = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * inverse;
  Vec<acc_t> d_sum[4] = {}, d2_sum[4] = {};
  const auto add = [&](int64_t e, int64_t j) {
    const Vec<acc_t> d = columns[e] - pivot;
    d_sum[j] += d;
    d2_sum[j] += d * d;
  };
  for (int64_t e = 0; e < fours; e += 4)
    for (int64_t j = 0; j < 4; ++j) add(e + j, j);
  for (int64_t e = fours; e < s; ++e) add(e, 0);
  const Vec<acc_t> sum_d = (d_sum[0] + d_sum[1]) + (d_sum[2] + d_sum[3]), shift = sum_d * inverse;
  const Vec<acc_t> sum_d2 = (d2_sum[0] + d2_sum[1]) + (d2_sum[2] + d2_sum[3]);
  const Vec<acc_t> row_mean = pivot - pivot == 0 ? pivot + shift : pivot;
  const Vec<acc_t> row_m2 = sum_d2 - sum_d * shift;
  if (rows == w) {
    store(mean, row_mean);
    store(m2, row_m2);
  } else {
    store_some(mean, row_mean, rows);
    store_some(m2, row_m2, rows);
  }
}

// Rows [begin, end) of all `rows` of the tensor; rows must not be empty.
template <typename scalar_t>
static void moments_of_rows(const scalar_t* x, int64_t s, int64_t rows, int64_t begin, int64_t end,
                            Acc<scalar_t>* mean, Acc<scalar_t>* m2) {
  constexpr int64_t w = kWidth<Acc<scalar_t>>;
  if (s <= kSmallRow) {
    for (int64_t row = begin; row < end; row += w)
      moments_of_small_rows(x + row * s, least(w, end - row), s, (rows - row) * s, mean + row,
                            m2 + row);
    return;
  }
  for (int64_t row = begin; row < end; ++row) moments_of_row(x + row * s, s, mean + row, m2 + row);
}

// Sums over the pixels of a chunk for `vectors` vectors of channels; the last may be partial.
// ahead: how far the next chunk lies, for the prefetch.
template <typename scalar_t, int64_t vectors, bool partial>
static inline void group_sums(const scalar_t* x, int64_t pixels, int64_t stride, int64_t tail,
                              int64_t ahead, Acc<scalar_t>* pivot_out, Acc<scalar_t>* d_out,
                              Acc<scalar_t>* d2_out) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  const auto read = [&](const scalar_t* pixel, int64_t j) {
    return partial && j == vectors - 1 ? load_some(pixel + j * w, tail) : load(pixel + j * w);
  };
  const int64_t pairs = pixels / 2 * 2;
  Vec<acc_t> sum[2][vectors] = {};
  for (int64_t p = 0; p < pairs; p += 2)
    for (int64_t q = 0; q < 2; ++q)
      for (int64_t j = 0; j < vectors; ++j) sum[q][j] += read(x + (p + q) * stride, j);
  for (int64_t p = pairs; p < pixels; ++p)
    for (int64_t j = 0; j < vectors; ++j) sum[0][j] += read(x + p * stride, j);
  const acc_t inverse = acc_t(1) / static_cast<acc_t>(pixels);
  Vec<acc_t> pivot[vectors];
  for (int64_t j = 0; j < vectors; ++j) pivot[j] = (sum[0][j] + sum[1][j]) * inverse;

  Vec<acc_t> d_sum[2][vectors] = {}, d2_sum[2][vectors] = {};
  const auto add = [&](int64_t q, int64_t j, const scalar_t* pixel) {
    const Vec<acc_t> d = read(pixel, j) - pivot[j];
    d_sum[q][j] += d;
    d2_sum[q][j] += d * d;
  };
  for (int64_t p = 0; p < pairs; p += 2)
    for (int64_t q = 0; q < 2; ++q)
      for (int64_t j = 0; j < vectors; ++j) {
        __builtin_prefetch(x + (p + q) * stride + ahead + j * w);
        add(q, j, x + (p + q) * stride);
      }
  for (int64_t p = pairs; p < pixels; ++p)
    for (int64_t j = 0; j < vectors; ++j) add(0, j, x + p * stride);
  for (int64_t j = 0; j < vectors; ++j) {
    store(pivot_out + j * w, pivot[j]);
    store(d_out + j * w, d_sum[0][j] + d_sum[1][j]);
    store(d2_out + j * w, d2_sum[0][j] + d2_sum[1][j]);
  }
}

constexpr int64_t kSlab = 512;  // channels whose running moments are kept at once, at most

// Running moments of up to kSlab channels, in double.
struct SlabMoments {
  double count;
  double mean[kSlab], m2[kSlab];
};

static inline int64_t pixels_per_chunk(int64_t channels, int64_t s, int64_t bytes_per_element) {
  const int64_t fitting = kChunkBytes / most(1, channels * bytes_per_element);
  return least(s, most(8, least(kPixelChunk, fitting)));
}

// Merges one chunk of pixels into the running moments of channels [0, channels) at x.
template <typename scalar_t>
static void add_pixels(SlabMoments& slab, const scalar_t* x, int64_t pixels, int64_t stride,
                       int64_t channels) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  constexpr int64_t padded = kSlab + kGroup * w;
  acc_t pivot[padded], sum_d[padded], sum_d2[padded];
  const int64_t ahead = pixels * stride;
  int64_t c = 0;
  for (; c + kGroup * w <= channels; c += kGroup * w)
    group_sums<scalar_t, kGroup, false>(x + c, pixels, stride, 0, ahead, pivot + c, sum_d + c,
                                        sum_d2 + c);
  for (; c + w <= channels; c += w)
    group_sums<scalar_t, 1, false>(x + c, pixels, stride, 0, ahead, pivot + c, sum_d + c,
                                   sum_d2 + c);
  if (c < channels)
    group_sums<scalar_t, 1, true>(x + c, pixels, stride, channels - c, ahead, pivot + c, sum_d + c,
                                  sum_d2 + c);
  const double count = static_cast<double>(pixels), inverse = 1.0 / count;
  const double total = slab.count + count;
  const double share = count / total, weight = slab.count * share;
  for (int64_t j = 0; j < channels; ++j) {  // from_shifted_sums and merge, divisions taken out
    const double shift = sum_d[j] * inverse;
    const double at = pivot[j];
    const double mean = at - at == 0.0 ? at + shift : at;
    const double m2 = sum_d2[j] - sum_d[j] * shift;
    const double delta = mean - slab.mean[j];
    slab.mean[j] = slab.count == 0.0 ? mean : slab.mean[j] + delta * share;
    slab.m2[j] = slab.count == 0.0 ? m2 : slab.m2[j] + m2 + delta * delta * weight;
  }
  slab.count = total;
}

template <typename acc_t>
static inline void write_slab(const SlabMoments& slab, int64_t channels, acc_t* mean, acc_t* m2) {
  for (int64_t j = 0; j < channels; ++j) {
    mean[j] = static_cast<acc_t>(slab.mean[j]);
    m2[j] = static_cast<acc_t>(slab.m2[j]);
  }
}

template <typename scalar_t>
static void moments_rows(const MomentsArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  moments_of_rows(static_cast<const scalar_t*>(a.x), a.s, a.n * a.c, begin, end,
                  static_cast<acc_t*>(a.mean), static_cast<acc_t*>(a.m2));
}

template <typename scalar_t>
static void moments_pixels(const MomentsArgs& a, int64_t sample, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const scalar_t* x = static_cast<const scalar_t*>(a.x) + sample * a.s * a.c;
  const int64_t chunk = pixels_per_chunk(a.c, a.s, sizeof(acc_t));
  for (int64_t c = begin; c < end; c += kSlab) {
    const int64_t channels = least(kSlab, end - c), row = sample * a.c + c;
    SlabMoments slab = {};
    for (int64_t p = 0; p < a.s; p += chunk)
      add_pixels(slab, x + p * a.c + c, least(chunk, a.s - p), a.c, channels);
    write_slab(slab, channels, static_cast<acc_t*>(a.mean) + row, static_cast<acc_t*>(a.m2) + row);
  }
}
