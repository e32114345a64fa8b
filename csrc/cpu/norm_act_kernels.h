// Sums of the gradient that reaches a trained norm, for its weights and for dx. Included by
// isa_*.cpp after bn_act_kernels.h, see vec.h.
//
// Per row: sum g and sum g (x - mean), g = mask(k x + h) * unpool(grad_y); beside a gradient a of
// dx also sum a, sum a (x - mean) and sum a g. Added in acc_t over at most kBlockPixels pixels or
// kChunk elements, then in double.

template <typename scalar_t, bool relu, bool with_a>
static void norm_sums_rows_as(const NormSumsArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const BnActBackwardArgs& pass = a.pass;
  const auto* x = static_cast<const scalar_t*>(pass.x);
  for (int64_t row = begin; row < end; ++row) {
    a.sum_g[row] = a.sum_gx[row] = 0.0;
    if constexpr (with_a) a.sum_a[row] = a.sum_ax[row] = a.sum_ag[row] = 0.0;
  }
  for_row_gradients<scalar_t>(
      pass, begin, end, [&](int64_t row, int64_t first, int64_t size, const auto& gradient) {
        const int64_t scale = pass.scale_of(row), start = row * pass.s() + first;
        const Vec<acc_t> k = broadcast<acc_t>(static_cast<const acc_t*>(pass.k)[scale]);
        const Vec<acc_t> h = broadcast<acc_t>(static_cast<const acc_t*>(pass.h)[scale]);
        const Vec<acc_t> center = broadcast<acc_t>(static_cast<acc_t>(pass.mean[row]));
        for (int64_t chunk = 0; chunk < size; chunk += kChunk) {
          Vec<acc_t> sum_g = {}, sum_gx = {}, sum_a = {}, sum_ax = {}, sum_ag = {};
          for_vectors<acc_t>(least(kChunk, size - chunk), [&](int64_t i, int64_t count) {
            const Vec<acc_t> v = get(x + start + chunk + i, count);
            Vec<acc_t> g = mask<relu>(k * v + h, gradient(chunk + i, count));
            if (count < kWidth<acc_t>) g = keep_first<acc_t>(g, count);
            sum_g += g;
            sum_gx += g * (v - center);
            if constexpr (with_a) {
              const auto* from = static_cast<const scalar_t*>(a.gg_x) + start + chunk;
              const Vec<acc_t> o = get(from + i, count);
              sum_a += o;
              sum_ax += o * (v - center);
              sum_ag += o * g;
            }
          });
          a.sum_g[row] += sum_of<acc_t>(sum_g);
          a.sum_gx[row] += sum_of<acc_t>(sum_gx);
          if constexpr (with_a) {
            a.sum_a[row] += sum_of<acc_t>(sum_a);
            a.sum_ax[row] += sum_of<acc_t>(sum_ax);
            a.sum_ag[row] += sum_of<acc_t>(sum_ag);
          }
        }
      });
}

template <typename scalar_t, bool relu, bool with_a>
static void norm_sums_pixels_as(const NormSumsArgs& a, int64_t sample, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t padded = kGradientSlab + kWidth<acc_t>, kinds = with_a ? 5 : 2;
  const BnActBackwardArgs& pass = a.pass;
  double* const totals[] = {a.sum_g, a.sum_gx, a.sum_a, a.sum_ax, a.sum_ag};
  alignas(64) acc_t center[padded], sums[kinds][padded];
  for (int64_t first = begin; first < end; first += kGradientSlab) {
    const int64_t channels = least(kGradientSlab, end - first), row = sample * pass.c + first;
    const int64_t start = sample * pass.s() * pass.c + first;
    const auto* x = static_cast<const scalar_t*>(pass.x) + start;
    const auto* other = static_cast<const scalar_t*>(a.gg_x) + (with_a ? start : 0);
    const auto* k = static_cast<const acc_t*>(pass.k) + pass.scale_of(row);
    const auto* h = static_cast<const acc_t*>(pass.h) + pass.scale_of(row);
    for (int64_t c = 0; c < channels; ++c) center[c] = static_cast<acc_t>(pass.mean[row + c]);
    for (int64_t kind = 0; kind < kinds; ++kind)
      for (int64_t c = 0; c < channels; ++c) sums[kind][c] = totals[kind][row + c] = 0;
    for_pixel_gradients<scalar_t>(pass, sample, first, [&](int64_t pixel, const auto& gradient) {
      for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
        const auto add = [&](int64_t kind, const Vec<acc_t>& v) {
          store(sums[kind] + c, load(sums[kind] + c) + v);
        };
        const Vec<acc_t> v = get(x + pixel * pass.c + c, count), d = v - load(center + c);
        const Vec<acc_t> before = get(k + c, count) * v + get(h + c, count);
        const Vec<acc_t> g = mask<relu>(before, gradient(c, count));
        add(0, g);
        add(1, g * d);
        if constexpr (with_a) {
          const Vec<acc_t> o = get(other + pixel * pass.c + c, count);
          add(2, o);
          add(3, o * d);
          add(4, o * g);
        }
      });
      if ((pixel + 1) % kBlockPixels != 0 && pixel + 1 != pass.s()) return;
      for (int64_t kind = 0; kind < kinds; ++kind)
        for (int64_t c = 0; c < channels; ++c) {
          totals[kind][row + c] += sums[kind][c];
          sums[kind][c] = 0;
        }
    });
  }
}

// One row of the pass below: what reaches the ReLU, a, and the part that is affine in x.
template <typename scalar_t>
struct NormDoubleRow {
  using acc_t = Acc<scalar_t>;
  struct Element {
    Vec<acc_t> before, a, affine;
  };
  const scalar_t *x, *a;
  Vec<acc_t> k, h, shift, slope, center;

  NormDoubleRow(const NormDoubleArgs& args, int64_t row, const double* grad_mean,
                const double* grad_m2) {
    const BnActBackwardArgs& pass = args.pass;
    const int64_t s = pass.s(), scale = pass.scale_of(row);
    const auto one = moments_gradient<acc_t>(grad_mean[row], grad_m2[row], pass.mean[row],
                                             1.0 / static_cast<double>(s));
    x = static_cast<const scalar_t*>(pass.x) + row * s;
    a = static_cast<const scalar_t*>(args.gg_x) + row * s;
    k = broadcast<acc_t>(static_cast<const acc_t*>(pass.k)[scale]);
    h = broadcast<acc_t>(static_cast<const acc_t*>(pass.h)[scale]);
    shift = broadcast<acc_t>(one.shift);
    slope = broadcast<acc_t>(one.slope);
    center = broadcast<acc_t>(one.center);
  }

  Element at(int64_t i, int64_t count) const {
    const Vec<acc_t> v = get(x + i, count);
    return {k * v + h, get(a + i, count), shift + slope * (v - center)};
  }
};

// The gradient of that gradient: dx from a, g and x, and gg_y, which is pooled like y.
template <typename scalar_t, bool relu>
static void norm_double_rows_as(const NormDoubleArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const BnActBackwardArgs& pass = a.pass;
  const int64_t s = pass.s(), together = rows_at_once<scalar_t>(s);
  const bool stream = pass.stream && can_stream<scalar_t>(pass.dx, s);
  for_row_gradients<scalar_t>(
      pass, begin, end, [&](int64_t row, int64_t first, int64_t size, const auto& gradient) {
        const NormDoubleRow<scalar_t> to_x(a, row, pass.grad_mean, pass.grad_m2);
        const Vec<acc_t> from_a = broadcast<acc_t>(static_cast<acc_t>(a.from_a[row]));
        const Vec<acc_t> from_g = broadcast<acc_t>(static_cast<acc_t>(a.from_g[row]));
        auto* dx = static_cast<scalar_t*>(pass.dx) + row * s + first;
        for_vectors<acc_t>(size, [&](int64_t i, int64_t count) {
          const auto v = to_x.at(first + i, count);
          const Vec<acc_t> g = mask<relu>(v.before, gradient(i, count));
          set(dx + i, from_a * v.a + from_g * g + v.affine, count, stream);
        });
      });
  finish_streaming(stream);
  const auto for_values = [&](int64_t row, int64_t first, int64_t size, const auto& put_value) {
    const NormDoubleRow<scalar_t> to_y(a, row, a.y_grad_mean, a.y_grad_m2);
    for_vectors<acc_t>(size, [&](int64_t i, int64_t count) {
      const auto v = to_y.at(first + i, count);
      put_value(i, count, mask<relu>(v.before, to_y.k * v.a + v.affine));
    });
  };
  for (int64_t first = begin; first < end; first += together)
    write_rows(pass, first, least(end, first + together), static_cast<scalar_t*>(a.gg_y), false,
               for_values);
}

template <typename scalar_t, bool relu>
static void norm_double_pixels_as(const NormDoubleArgs& a, int64_t sample, int64_t begin,
                                  int64_t end) {
  using acc_t = Acc<scalar_t>;
  const BnActBackwardArgs& pass = a.pass;
  const int64_t s = pass.s(), out_s = pass.pool ? pass.height / 2 * (pass.width / 2) : s;
  const double inverse = 1.0 / static_cast<double>(s);
  alignas(64) acc_t from_a[kGradientSlab], from_g[kGradientSlab];
  for (int64_t first = begin; first < end; first += kGradientSlab) {
    const int64_t channels = least(kGradientSlab, end - first), row = sample * pass.c + first;
    const int64_t start = sample * s * pass.c + first;
    const auto* x = static_cast<const scalar_t*>(pass.x) + start;
    const auto* other = static_cast<const scalar_t*>(a.gg_x) + start;
    const auto* k = static_cast<const acc_t*>(pass.k) + pass.scale_of(row);
    const auto* h = static_cast<const acc_t*>(pass.h) + pass.scale_of(row);
    auto* dx = static_cast<scalar_t*>(pass.dx) + start;
    auto* gg_y = static_cast<scalar_t*>(a.gg_y) + sample * out_s * pass.c + first;
    const bool stream = pass.stream && can_stream<scalar_t>(dx, pass.c);
    const double* mean = pass.mean + row;
    const MomentsGradients<acc_t> to_x(pass.grad_mean + row, pass.grad_m2 + row, mean, inverse,
                                       channels);
    const MomentsGradients<acc_t> to_y(a.y_grad_mean + row, a.y_grad_m2 + row, mean, inverse,
                                       channels);
    for (int64_t c = 0; c < channels; ++c) {
      from_a[c] = static_cast<acc_t>(a.from_a[row + c]);
      from_g[c] = static_cast<acc_t>(a.from_g[row + c]);
    }
    for_pixel_gradients<scalar_t>(pass, sample, first, [&](int64_t pixel, const auto& gradient) {
      for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
        const int64_t at = pixel * pass.c + c;
        const Vec<acc_t> v = get(x + at, count), o = get(other + at, count);
        const Vec<acc_t> before = get(k + c, count) * v + get(h + c, count);
        const Vec<acc_t> g = mask<relu>(before, gradient(c, count));
        set(dx + at, get(from_a + c, count) * o + get(from_g + c, count) * g + to_x.at(c, count, v),
            count, stream);
      });
    });
    finish_streaming(stream);
    const auto value = [&](int64_t pixel, int64_t c, int64_t count) {
      const int64_t at = pixel * pass.c + c;
      const Vec<acc_t> v = get(x + at, count), k_c = get(k + c, count);
      const Vec<acc_t> through = k_c * get(other + at, count) + to_y.at(c, count, v);
      return mask<relu>(k_c * v + get(h + c, count), through);
    };
    const int64_t piece = pass.pool ? 2 * pass.width : s;
    for (int64_t p = 0; p < s; p += piece)
      write_pixels(pass, p, least(s, p + piece), channels, gg_y, false, value);
  }
}

template <typename scalar_t>
static void norm_sums_rows(const NormSumsArgs& a, int64_t begin, int64_t end) {
  if (a.gg_x != nullptr)
    a.pass.relu ? norm_sums_rows_as<scalar_t, true, true>(a, begin, end)
                : norm_sums_rows_as<scalar_t, false, true>(a, begin, end);
  else
    a.pass.relu ? norm_sums_rows_as<scalar_t, true, false>(a, begin, end)
                : norm_sums_rows_as<scalar_t, false, false>(a, begin, end);
}

template <typename scalar_t>
static void norm_sums_pixels(const NormSumsArgs& a, int64_t sample, int64_t begin, int64_t end) {
  if (a.gg_x != nullptr)
    a.pass.relu ? norm_sums_pixels_as<scalar_t, true, true>(a, sample, begin, end)
                : norm_sums_pixels_as<scalar_t, false, true>(a, sample, begin, end);
  else
    a.pass.relu ? norm_sums_pixels_as<scalar_t, true, false>(a, sample, begin, end)
                : norm_sums_pixels_as<scalar_t, false, false>(a, sample, begin, end);
}

template <typename scalar_t>
static void norm_double_rows(const NormDoubleArgs& a, int64_t begin, int64_t end) {
  a.pass.relu ? norm_double_rows_as<scalar_t, true>(a, begin, end)
              : norm_double_rows_as<scalar_t, false>(a, begin, end);
}

template <typename scalar_t>
static void norm_double_pixels(const NormDoubleArgs& a, int64_t sample, int64_t begin,
                               int64_t end) {
  a.pass.relu ? norm_double_pixels_as<scalar_t, true>(a, sample, begin, end)
              : norm_double_pixels_as<scalar_t, false>(a, sample, begin, end);
}
