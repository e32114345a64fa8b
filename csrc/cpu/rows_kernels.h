// Moments of rows that lie together (NCHW). Included by isa_*.cpp after vec.h.
//
// Short rows: a vector's worth of rows at a time, read twice: from memory for their means, the
// pivots, and from the first-level cache for the sums of x - pivot and its square. Sums across
// lanes are taken of all these rows at once.
// Long rows are read once, about a pivot that a few elements of the row suggest. A sum of squares
// about a point that is e away from the mean is 1 + (e / sd)^2 times too large and loses digits by
// that factor: where it turns out to exceed kPivotLoss, the row is read again.
// Sums over more than kChunk elements are double. Nothing depends on anything but the row.

constexpr int64_t kShortRow = 128;  // elements
constexpr int64_t kChunk = 1024;    // elements summed in acc_t, in four accumulators
constexpr double kPivotLoss = 4.0;  // squares may be inflated by this much more than themselves
constexpr int64_t kPrefetchBytes = 2048;

// A Zen 4 fetches ahead by itself what is read in the order of memory, and reads at half the speed
// where it is asked to; a Xeon reads at up to half the speed where it is not.
static inline bool asks_ahead() { return kVectorBytes != 64 || !fetches_ahead; }

// The mean is the pivot plus its correction; an infinite pivot must not turn into NaN.
static inline double corrected(double pivot, double shift) {
  return pivot - pivot == 0.0 ? pivot + shift : pivot;
}

// Whether the pivot was too far from the mean; false if anything is NaN.
static inline bool bad_pivot(double sum_d, double shift, double m2) {
  return sum_d * shift > kPivotLoss * m2;
}

// The last vector of a tensor, which may not be read as a whole.
template <typename scalar_t>
[[gnu::noinline]] static void load_end(const scalar_t* x, int64_t count, Acc<scalar_t>* to) {
  store(to, load_some(x, count));
}

// Up to a vector's worth of short rows. `readable` elements may be read from x on. With `in_order`
// they are walked so nearly in the order of memory that nothing need be prefetched.
template <typename scalar_t, bool in_order>
struct ShortRows {
  using acc_t = Acc<scalar_t>;
  static constexpr int64_t w = kWidth<acc_t>;
  static constexpr int64_t kTile = in_order || w < 4 ? 2 : 4;  // rows walked side by side

  const scalar_t* x;
  int64_t rows, s, readable;

  const scalar_t* row(int64_t r) const { return x + least(r, rows - 1) * s; }

  // The last s % w elements of a row, where a load may run into the next row, and then zeros.
  Vec<acc_t> rest(int64_t r, int64_t count) const {
    const scalar_t* at = row(r) + (s - count);
    if (at + w <= x + readable) return load(at);
    acc_t whole[w];
    load_end(at, x + readable - at, whole);
    return load(whole);
  }

  // Calls step(r, v, keep) for all vectors of the rows [first, first + kTile); keep(v) drops what
  // is not of the row. With `ahead` the rows after these are fetched meanwhile.
  template <bool ahead, typename Step>
  [[gnu::always_inline]] void walk(int64_t first, const Step& step) const {
    const int64_t count = s % w, whole = s - count;
    const int64_t next = most(w * s, kPrefetchBytes / static_cast<int64_t>(sizeof(scalar_t)));
    const scalar_t* at[kTile];
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) at[r] = row(first + r);
    for (int64_t i = 0; i < whole; i += w)
#pragma GCC unroll 4
      for (int64_t r = 0; r < kTile; ++r) {
        if constexpr (ahead && !in_order) __builtin_prefetch(at[r] + i + next);
        step(r, load(at[r] + i), [](const auto& v) { return v; });
      }
    if (count == 0) return;
    const auto keep = [&](const Vec<acc_t>& v) { return keep_first<acc_t>(v, count); };
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) step(r, rest(first + r, count), keep);
  }
};

template <typename scalar_t, bool in_order>
static inline void moments_of_short_rows(const ShortRows<scalar_t, in_order>& all, double* mean,
                                         double* m2) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>, kTile = ShortRows<scalar_t, in_order>::kTile;
  Vec<acc_t> sum[w], sum2[w];
#pragma GCC unroll 4
  for (int64_t first = 0; first < w; first += kTile) {
    Vec<acc_t> part[kTile];
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) part[r] = Vec<acc_t>{};
    all.template walk<false>(
        first, [&](int64_t r, const Vec<acc_t>& v, const auto& keep) { part[r] += keep(v); });
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) sum[first + r] = part[r];
  }
  acc_t pivot[w], sum_d[w], sum_d2[w];
  store(pivot,
        on_grid<scalar_t>(sums_of_each<acc_t>(sum) * (acc_t(1) / static_cast<acc_t>(all.s))));

#pragma GCC unroll 4
  for (int64_t first = 0; first < w; first += kTile) {
    Vec<acc_t> center[kTile], part[kTile], part2[kTile];
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) {
      center[r] = broadcast<acc_t>(pivot[first + r]);
      part[r] = part2[r] = Vec<acc_t>{};
    }
    all.template walk<true>(first, [&](int64_t r, const Vec<acc_t>& v, const auto& keep) {
      const Vec<acc_t> d = keep(v - center[r]);
      part[r] += d;
      part2[r] += d * d;
    });
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) {
      sum[first + r] = part[r];
      sum2[first + r] = part2[r];
    }
  }
  store(sum_d, sums_of_each<acc_t>(sum));
  store(sum_d2, sums_of_each<acc_t>(sum2));
  const double inverse = 1.0 / static_cast<double>(all.s);
  const auto write = [&](int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      const double d = sum_d[r], shift = d * inverse;
      mean[r] = corrected(pivot[r], shift);
      m2[r] = sum_d2[r] - d * shift;
    }
  };
  all.rows >= w ? write(w) : write(all.rows);
}

// Sums of x - pivot and its square over one chunk.
template <typename scalar_t>
static inline void add_chunk(const scalar_t* x, int64_t count, const Vec<Acc<scalar_t>>& center,
                             double* sum_d, double* sum_d2) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  constexpr int64_t ahead = kPrefetchBytes / static_cast<int64_t>(sizeof(scalar_t));
  const int64_t whole = count / w * w, blocks = count / (4 * w) * (4 * w);
  const bool ask = asks_ahead();
  Vec<acc_t> sum[4] = {}, sum2[4] = {};
  const auto add = [&](int64_t j, const Vec<acc_t>& d) {
    sum[j] += d;
    sum2[j] += d * d;
  };
  for (int64_t i = 0; i < blocks; i += 4 * w) {
    if (ask) prefetch<4>(x + i + ahead);
    for (int64_t j = 0; j < 4; ++j) add(j, load(x + i + j * w) - center);
  }
  for (int64_t i = blocks; i < whole; i += w) add(0, load(x + i) - center);
  if (whole < count)
    add(1, keep_first<acc_t>(load_some(x + whole, count - whole) - center, count - whole));
  *sum_d += sum_of<acc_t>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  *sum_d2 += sum_of<acc_t>((sum2[0] + sum2[1]) + (sum2[2] + sum2[3]));
}

template <typename scalar_t>
static inline void moments_of_long_row(const scalar_t* x, int64_t s, double* mean, double* m2) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  // Vectors of the first half: read up to its end, a row of 1 KB would hide from the processor that
  // it and the next rows follow one another.
  const int64_t step = s / 8 / w * w;
  const Vec<acc_t> some = (load(x) + load(x + step)) + (load(x + 2 * step) + load(x + 3 * step));
  acc_t pivot = sum_of<acc_t>(some) / static_cast<acc_t>(4 * w);
  for (int64_t reading = 0; reading < 2; ++reading) {
    const Vec<acc_t> center = on_grid<scalar_t>(broadcast<acc_t>(pivot));
    double sum_d = 0.0, sum_d2 = 0.0;
    for (int64_t begin = 0; begin < s; begin += kChunk)
      add_chunk(x + begin, least(kChunk, s - begin), center, &sum_d, &sum_d2);
    const double shift = sum_d / static_cast<double>(s);
    *mean = corrected(center[0], shift);
    *m2 = sum_d2 - sum_d * shift;
    if (!bad_pivot(sum_d, shift, *m2)) break;
    pivot = static_cast<acc_t>(*mean);
  }
}

// Rows that moments_of_rows wants to be given at once.
template <typename scalar_t>
static inline int64_t rows_at_once(int64_t s) {
  return s <= kShortRow ? kWidth<Acc<scalar_t>> : 1;
}

// Rows [begin, end) of all `rows` of the tensor; rows must not be empty.
template <typename scalar_t>
static void moments_of_rows(const scalar_t* x, int64_t s, int64_t rows, int64_t begin, int64_t end,
                            double* mean, double* m2) {
  const int64_t together = rows_at_once<scalar_t>(s);
  const bool in_order = !asks_ahead() && s >= 4 * kWidth<Acc<scalar_t>>;
  const auto some = [&](int64_t row, auto order) {
    moments_of_short_rows<scalar_t, decltype(order)::value>(
        {x + row * s, least(together, end - row), s, (rows - row) * s}, mean + row, m2 + row);
  };
  for (int64_t row = begin; row < end; row += together)
    if (s > kShortRow)
      moments_of_long_row(x + row * s, s, mean + row, m2 + row);
    else if (in_order)
      some(row, std::true_type{});
    else
      some(row, std::false_type{});
}

template <typename scalar_t>
static void moments_rows(const MomentsArgs& a, int64_t begin, int64_t end) {
  moments_of_rows(static_cast<const scalar_t*>(a.x), a.s, a.n * a.c, begin, end, a.mean, a.m2);
}
