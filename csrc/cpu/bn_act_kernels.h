// Frozen batch norm, activation, residual and 2x2 average pool with the moments of the input.
// Included by isa_*.cpp after pixels_kernels.h, see vec.h.
//
// Forward, per chunk that the moments have just brought into the cache: y = pool(act(k x + h + r)).
// Backward: g = mask(k x + h + r) * unpool(grad_y), dr = g, and
// dx = k g + grad_mean / S + 2 grad_m2 (x - mean). The mask is recomputed: nothing is saved but x.
// Pooling of rows goes through a buffer of at most kPlane elements, whole pairs of image rows.

constexpr int64_t kPlane = 16384;          // two image rows of the widest image that can be pooled
constexpr int64_t kPooledTogether = 2048;  // elements of planes that are pooled as one image

template <bool relu, typename vec_t>
static inline vec_t activate(const vec_t& value) {
  if constexpr (relu)
    return value <= 0 ? vec_t{} : value;  // NaN stays
  else
    return value;
}

template <bool relu, typename vec_t>
static inline vec_t mask(const vec_t& value, const vec_t& gradient) {
  if constexpr (relu)
    return value <= 0 ? vec_t{} : gradient;
  else
    return gradient;
}

// Image rows of one pass through the buffer: as many pairs as fit in the first-level cache.
static inline int64_t buffered_image_rows(int64_t height, int64_t width) {
  return least(height, most(2, 2048 / most(1, width) / 2 * 2));
}

// Calls body with the width as a constant where it is a common short one, so that loops over an
// image row narrower than a vector unroll; otherwise with the width as it is.
template <typename Body>
static inline void with_width(int64_t width, const Body& body) {
  switch (width) {
    case 2:
      return body(std::integral_constant<int64_t, 2>{});
    case 4:
      return body(std::integral_constant<int64_t, 4>{});
    case 8:
      return body(std::integral_constant<int64_t, 8>{});
    case 16:
      return body(std::integral_constant<int64_t, 16>{});
    default:
      return body(width);
  }
}

// out[j] = a[2 j] + a[2 j + 1] for a vector of j.
template <typename acc_t, int64_t... i>
static inline Vec<acc_t> add_neighbours(const acc_t* a, std::integer_sequence<int64_t, i...>) {
  const Vec<acc_t> low = load(a), high = load(a + kWidth<acc_t>);
  return __builtin_shufflevector(low, high, (2 * i)...) +
         __builtin_shufflevector(low, high, (2 * i + 1)...);
}

// out = means of the 2x2 blocks of `a`, an image of `rows` x `width`. a is overwritten and must be
// readable for a vector past its end.
template <typename scalar_t>
static inline void average_pairs(Acc<scalar_t>* a, int64_t rows, int64_t width, scalar_t* out) {
  using acc_t = Acc<scalar_t>;
  const int64_t half = width / 2, pairs = rows / 2;
  with_width(width, [&](auto w) {  // each pair of image rows becomes one
    for (int64_t i = 0; i < pairs; ++i)
      for (int64_t j = 0; j < w; ++j) a[i * w + j] = a[2 * i * w + j] + a[(2 * i + 1) * w + j];
  });
  // With an even width no block straddles two rows, so all of them are one long row.
  const int64_t lines = width % 2 == 0 ? 1 : pairs, length = width % 2 == 0 ? pairs * half : half;
  for (int64_t i = 0; i < lines; ++i)
    for_vectors<acc_t>(length, [&](int64_t j, int64_t count) {
      const Vec<acc_t> sum = add_neighbours<acc_t>(
          a + i * width + 2 * j, std::make_integer_sequence<int64_t, kWidth<acc_t>>{});
      set(out + i * half + j, acc_t(0.25) * sum, count, false);
    });
}

// The reverse: a quarter of each gradient to its 2x2 block, zero outside of one. `out` holds
// rows x width and is writable for two vectors past its end.
template <typename scalar_t>
static inline void spread_pairs(const scalar_t* gradient, int64_t rows, int64_t width,
                                Acc<scalar_t>* out) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t w = kWidth<acc_t>;
  const int64_t half = width / 2, pairs = rows / 2;
  const int64_t lines = width % 2 == 0 ? 1 : pairs, length = width % 2 == 0 ? pairs * half : half;
  for (int64_t i = 0; i < lines; ++i) {  // along the rows, into the first half of the buffer
    for_vectors<acc_t>(length, [&](int64_t j, int64_t count) {
      const Vec<acc_t> quarter = acc_t(0.25) * get(gradient + i * half + j, count);
      Vec<acc_t> low, high;
      interleave<acc_t>(quarter, quarter, low, high, std::make_integer_sequence<int64_t, w>{});
      store(out + i * width + 2 * j, low);
      store(out + i * width + 2 * j + w, high);
    });
    if (width % 2 != 0) out[i * width + width - 1] = 0;
  }
  with_width(width, [&](auto row) {  // then each row twice, from the last on
    for (int64_t i = pairs - 1; i >= 0; --i)
      for (int64_t j = row - 1; j >= 0; --j)
        out[2 * i * row + j] = out[(2 * i + 1) * row + j] = out[i * row + j];
  });
  if (rows % 2 != 0)
    for (int64_t j = 0; j < width; ++j) out[(rows - 1) * width + j] = 0;
}

// Short planes (the images of one row) of even height are pooled several at a time: side by side
// they are one image. Everything else is pooled in strips of one plane.
template <typename acc_t>
static inline bool pooled_together(int64_t height, int64_t width) {
  return height % 2 == 0 && height * width * kWidth<acc_t> <= kPooledTogether;
}

// Writes rows [first, last) of values, pooled if asked; for_values(row, begin, size, put) calls
// put(i, count, value) for the elements [begin, begin + size) of a row. At most rows_at_once rows.
template <typename scalar_t, typename Args, typename Values>
static inline void write_rows(const Args& a, int64_t first, int64_t last, scalar_t* y, bool stream,
                              const Values& for_values) {
  using acc_t = Acc<scalar_t>;
  const int64_t s = a.s(), half = a.width / 2, out_s = a.pool ? (a.height / 2) * half : s;
  acc_t buffer[kPlane + 2 * kWidth<acc_t>];
  for (int64_t row = first; row < last && !a.pool; ++row)
    for_values(row, 0, s, [&](int64_t i, int64_t count, const Vec<acc_t>& v) {
      set(y + row * s + i, v, count, stream);
    });
  if (!a.pool) return;
  if (pooled_together<acc_t>(a.height, a.width)) {
    for (int64_t row = first; row < last; ++row)
      for_values(row, 0, s, [&](int64_t i, int64_t, const Vec<acc_t>& v) {
        store(buffer + (row - first) * s + i, v);
      });
    return average_pairs(buffer, (last - first) * a.height, a.width, y + first * out_s);
  }
  const int64_t strip = buffered_image_rows(a.height, a.width);
  for (int64_t row = first; row < last; ++row)
    for (int64_t top = 0; top + 1 < a.height; top += strip) {
      const int64_t rows = least(strip, a.height - top) / 2 * 2;
      for_values(row, top * a.width, rows * a.width,
                 [&](int64_t i, int64_t, const Vec<acc_t>& v) { store(buffer + i, v); });
      average_pairs(buffer, rows, a.width, y + row * out_s + top / 2 * half);
    }
}

template <typename scalar_t, bool relu, bool residual>
static void bn_act_rows_as(const BnActArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const int64_t s = a.s(), half = a.width / 2, out_s = a.pool ? (a.height / 2) * half : s;
  const auto* x = static_cast<const scalar_t*>(a.x);
  const auto* r = static_cast<const scalar_t*>(a.residual);
  auto* y = static_cast<scalar_t*>(a.y);
  const bool stream = a.stream && can_stream<scalar_t>(a.y, out_s);
  // Calls put_value(i, count, value) for the elements [first, first + size) of a row.
  const auto for_values = [&](int64_t row, int64_t first, int64_t size, const auto& put_value) {
    const int64_t scale = a.scale_of(row);
    const Vec<acc_t> k = broadcast<acc_t>(static_cast<const acc_t*>(a.k)[scale]);
    const Vec<acc_t> h = broadcast<acc_t>(static_cast<const acc_t*>(a.h)[scale]);
    for_vectors<acc_t>(size, [&](int64_t i, int64_t count) {
      const int64_t at = row * s + first + i;
      Vec<acc_t> v = k * get(x + at, count) + h;
      if constexpr (residual) v += get(r + at, count);
      put_value(i, count, activate<relu>(v));
    });
  };
  const int64_t together = rows_at_once<scalar_t>(s);
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = least(end, first + together);
    if (a.mean != nullptr)  // which brings them into the cache
      moments_of_rows(x, s, a.n * a.c, first, last, a.mean, a.m2);
    write_rows(a, first, last, y, stream, for_values);
  }
  finish_streaming(stream);
}

// Calls visit(row, first, size, gradient) for the elements [first, first + size) of rows
// [begin, end), all of them in order; gradient(i, count) is what reaches their activation.
template <typename scalar_t, typename Visit>
static inline void for_row_gradients(const BnActBackwardArgs& a, int64_t begin, int64_t end,
                                     const Visit& visit) {
  using acc_t = Acc<scalar_t>;
  const int64_t s = a.s(), half = a.width / 2, out_s = a.pool ? (a.height / 2) * half : s;
  const auto* grad_y = static_cast<const scalar_t*>(a.grad_y);
  acc_t buffer[kPlane + 2 * kWidth<acc_t>];
  const auto from_buffer = [&](int64_t offset) {
    return [&, offset](int64_t i, int64_t count) { return get(buffer + offset + i, count); };
  };
  const int64_t strip = buffered_image_rows(a.height, a.width);
  const int64_t together = a.pool && pooled_together<acc_t>(a.height, a.width) ? kWidth<acc_t> : 1;
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = least(end, first + together);
    if (!a.pool) {
      const scalar_t* incoming = grad_y + first * s;
      visit(first, 0, s, [&](int64_t i, int64_t count) { return get(incoming + i, count); });
    } else if (together > 1) {
      spread_pairs(grad_y + first * out_s, (last - first) * a.height, a.width, buffer);
      for (int64_t row = first; row < last; ++row) visit(row, 0, s, from_buffer((row - first) * s));
    } else {
      for (int64_t top = 0; top < a.height; top += strip) {
        const int64_t rows = least(strip, a.height - top);
        spread_pairs(grad_y + first * out_s + top / 2 * half, rows, a.width, buffer);
        visit(first, top * a.width, rows * a.width, from_buffer(0));
      }
    }
  }
}

template <typename scalar_t, bool relu, bool residual>
static void bn_act_backward_rows_as(const BnActBackwardArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const int64_t s = a.s();
  const double inverse = 1.0 / static_cast<double>(s);
  const bool stream = a.stream && can_stream<scalar_t>(a.dx, s) &&
                      (!residual || can_stream<scalar_t>(a.dresidual, s));
  const auto pass = [&](int64_t row, int64_t first, int64_t size, const auto& gradient) {
    const int64_t scale = a.scale_of(row);
    const Vec<acc_t> k = broadcast<acc_t>(static_cast<const acc_t*>(a.k)[scale]);
    const Vec<acc_t> h = broadcast<acc_t>(static_cast<const acc_t*>(a.h)[scale]);
    const auto one =
        moments_gradient<acc_t>(a.grad_mean[row], a.grad_m2[row], a.mean[row], inverse);
    const Vec<acc_t> shift = broadcast<acc_t>(one.shift), slope = broadcast<acc_t>(one.slope);
    const Vec<acc_t> center = broadcast<acc_t>(one.center);
    for_vectors<acc_t>(size, [&](int64_t i, int64_t count) {
      const int64_t at = row * s + first + i;
      const Vec<acc_t> in = get(static_cast<const scalar_t*>(a.x) + at, count);
      Vec<acc_t> before = k * in + h;
      if constexpr (residual) before += get(static_cast<const scalar_t*>(a.residual) + at, count);
      const Vec<acc_t> g = mask<relu>(before, gradient(i, count));
      set(static_cast<scalar_t*>(a.dx) + at, k * g + (shift + slope * (in - center)), count,
          stream);
      if constexpr (residual) set(static_cast<scalar_t*>(a.dresidual) + at, g, count, stream);
    });
  };
  for_row_gradients<scalar_t>(a, begin, end, pass);
  finish_streaming(stream);
}

// Writes value(pixel, c, count) for some channels of the pixels [first, last) of a sample; pooled
// if asked and if these are a pair of image rows.
template <typename scalar_t, typename Args, typename Value>
static inline void write_pixels(const Args& a, int64_t first, int64_t last, int64_t channels,
                                scalar_t* y, bool stream, const Value& value) {
  using acc_t = Acc<scalar_t>;
  const int64_t half = a.width / 2, out_row = first / a.width / 2 * half;
  for (int64_t q = first; q < last && !a.pool; ++q)
    for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
      set(y + q * a.c + c, value(q, c, count), count, stream);
    });
  if (!a.pool || last - first < 2 * a.width) return;
  for (int64_t j = 0; j < half; ++j)
    for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
      const int64_t q = first + 2 * j;
      const Vec<acc_t> sum = (value(q, c, count) + value(q + 1, c, count)) +
                             (value(q + a.width, c, count) + value(q + a.width + 1, c, count));
      set(y + (out_row + j) * a.c + c, acc_t(0.25) * sum, count, stream);
    });
}

template <typename scalar_t, bool relu, bool residual>
static void bn_act_pixels_as(const BnActArgs& a, int64_t sample, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const int64_t s = a.s(), half = a.width / 2, out_s = a.pool ? (a.height / 2) * half : s;
  // What is measured, then normalised, before the next: image rows in pairs where they are pooled.
  const int64_t piece = a.pool ? 2 * a.width : least(s, kBlockPixels);
  SlabSums<acc_t> slab;
  for (int64_t first = begin; first < end; first += kSlab) {
    const int64_t channels = least(kSlab, end - first), row = sample * a.c + first;
    const auto* x = static_cast<const scalar_t*>(a.x) + sample * s * a.c + first;
    const auto* r =
        static_cast<const scalar_t*>(a.residual) + (residual ? sample * s * a.c + first : 0);
    auto* y = static_cast<scalar_t*>(a.y) + sample * out_s * a.c + first;
    const auto* k = static_cast<const acc_t*>(a.k) + a.scale_of(row);
    const auto* h = static_cast<const acc_t*>(a.h) + a.scale_of(row);
    const bool measured = a.mean != nullptr, stream = a.stream && can_stream<scalar_t>(y, a.c);
    const auto value = [&](int64_t pixel, int64_t c, int64_t count) {
      const int64_t at = pixel * a.c + c;
      Vec<acc_t> v = get(k + c, count) * get(x + at, count) + get(h + c, count);
      if constexpr (residual) v += get(r + at, count);
      return activate<relu>(v);
    };
    if (measured) begin_slab(slab, x, s, a.c, channels);
    for (int64_t p = 0; p < s; p += piece) {
      const int64_t last = least(s, p + piece);
      if (measured) add_pixels(slab, x, p, last, a.c, channels);
      write_pixels(a, p, last, channels, y, stream, value);
    }
    if (measured) end_slab(slab, x, s, a.c, channels, a.mean + row, a.m2 + row);
    finish_streaming(stream);
  }
}

// Calls visit(pixel, gradient) for every pixel of the sample, in order; gradient(c, count) is what
// reaches the activation of these channels, counted from `first` on.
template <typename scalar_t, typename Visit>
static inline void for_pixel_gradients(const BnActBackwardArgs& a, int64_t sample, int64_t first,
                                       const Visit& visit) {
  using acc_t = Acc<scalar_t>;
  const int64_t s = a.s(), half = a.width / 2, out_s = a.pool ? (a.height / 2) * half : s;
  const auto* grad_y = static_cast<const scalar_t*>(a.grad_y) + sample * out_s * a.c + first;
  for (int64_t p = 0; p < s && !a.pool; ++p)
    visit(p, [&](int64_t c, int64_t count) { return get(grad_y + p * a.c + c, count); });
  for (int64_t i = 0; a.pool && i < a.height; ++i)
    for (int64_t j = 0; j < a.width; ++j) {
      const scalar_t* from = grad_y + (i / 2 * half + j / 2) * a.c;
      const bool pooled = i / 2 < a.height / 2 && j / 2 < half;
      visit(i * a.width + j, [&](int64_t c, int64_t count) {
        return pooled ? Vec<acc_t>(acc_t(0.25) * get(from + c, count)) : Vec<acc_t>{};
      });
    }
}

template <typename scalar_t, bool relu, bool residual>
static void bn_act_backward_pixels_as(const BnActBackwardArgs& a, int64_t sample, int64_t begin,
                                      int64_t end) {
  using acc_t = Acc<scalar_t>;
  const double inverse = 1.0 / static_cast<double>(a.s());
  for (int64_t first = begin; first < end; first += kGradientSlab) {
    const int64_t channels = least(kGradientSlab, end - first), row = sample * a.c + first;
    const int64_t start = sample * a.s() * a.c + first;
    const auto* x = static_cast<const scalar_t*>(a.x) + start;
    const auto* r = static_cast<const scalar_t*>(a.residual) + (residual ? start : 0);
    auto* dx = static_cast<scalar_t*>(a.dx) + start;
    auto* dr = static_cast<scalar_t*>(a.dresidual) + (residual ? start : 0);
    const auto* k = static_cast<const acc_t*>(a.k) + a.scale_of(row);
    const auto* h = static_cast<const acc_t*>(a.h) + a.scale_of(row);
    const MomentsGradients<acc_t> moments(a.grad_mean + row, a.grad_m2 + row, a.mean + row, inverse,
                                          channels);
    const bool stream =
        a.stream && can_stream<scalar_t>(dx, a.c) && (!residual || can_stream<scalar_t>(dr, a.c));
    for_pixel_gradients<scalar_t>(a, sample, first, [&](int64_t pixel, const auto& gradient) {
      for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
        const int64_t at = pixel * a.c + c;
        const Vec<acc_t> in = get(x + at, count), k_c = get(k + c, count);
        Vec<acc_t> before = k_c * in + get(h + c, count);
        if constexpr (residual) before += get(r + at, count);
        const Vec<acc_t> g = mask<relu>(before, gradient(c, count));
        set(dx + at, k_c * g + moments.at(c, count, in), count, stream);
        if constexpr (residual) set(dr + at, g, count, stream);
      });
    });
    finish_streaming(stream);
  }
}

// Turns the two switches into template arguments, so that inner loops hold no branch on them.
#define LTDD_SWITCHED(name, Args, ...)                            \
  template <typename scalar_t>                                    \
  static void name(const Args& a, LTDD_SWITCHED_PARAMETERS) {     \
    if (a.residual != nullptr)                                    \
      a.relu ? name##_as<scalar_t, true, true>(a, __VA_ARGS__)    \
             : name##_as<scalar_t, false, true>(a, __VA_ARGS__);  \
    else                                                          \
      a.relu ? name##_as<scalar_t, true, false>(a, __VA_ARGS__)   \
             : name##_as<scalar_t, false, false>(a, __VA_ARGS__); \
  }

#define LTDD_SWITCHED_PARAMETERS int64_t begin, int64_t end
LTDD_SWITCHED(bn_act_rows, BnActArgs, begin, end)
LTDD_SWITCHED(bn_act_backward_rows, BnActBackwardArgs, begin, end)
#undef LTDD_SWITCHED_PARAMETERS
#define LTDD_SWITCHED_PARAMETERS int64_t sample, int64_t begin, int64_t end
LTDD_SWITCHED(bn_act_pixels, BnActArgs, sample, begin, end)
LTDD_SWITCHED(bn_act_backward_pixels, BnActBackwardArgs, sample, begin, end)
#undef LTDD_SWITCHED_PARAMETERS
#undef LTDD_SWITCHED
