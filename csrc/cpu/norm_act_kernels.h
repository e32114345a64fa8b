// Sums of the gradient that reaches a trained norm, for its weights and for dx. Included by
// isa_*.cpp after bn_act_kernels.h, see vec.h.
//
// Per row: sum g and sum g (x - mean), g = mask(k x + h) * unpool(grad_y). Added in acc_t over at
// most kBlockPixels pixels or kChunk elements, then in double.

template <typename scalar_t, bool relu>
static void norm_sums_rows_as(const NormSumsArgs& a, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  const BnActBackwardArgs& pass = a.pass;
  const auto* x = static_cast<const scalar_t*>(pass.x);
  for (int64_t row = begin; row < end; ++row) a.sum_g[row] = a.sum_gx[row] = 0.0;
  for_row_gradients<scalar_t>(
      pass, begin, end, [&](int64_t row, int64_t first, int64_t size, const auto& gradient) {
        const int64_t scale = pass.scale_of(row);
        const Vec<acc_t> k = broadcast<acc_t>(static_cast<const acc_t*>(pass.k)[scale]);
        const Vec<acc_t> h = broadcast<acc_t>(static_cast<const acc_t*>(pass.h)[scale]);
        const Vec<acc_t> center = broadcast<acc_t>(static_cast<acc_t>(pass.mean[row]));
        const scalar_t* in = x + row * pass.s() + first;
        for (int64_t chunk = 0; chunk < size; chunk += kChunk) {
          Vec<acc_t> sum = {}, sum_x = {};
          for_vectors<acc_t>(least(kChunk, size - chunk), [&](int64_t i, int64_t count) {
            const Vec<acc_t> v = get(in + chunk + i, count);
            Vec<acc_t> g = mask<relu>(k * v + h, gradient(chunk + i, count));
            if (count < kWidth<acc_t>) g = keep_first<acc_t>(g, count);
            sum += g;
            sum_x += g * (v - center);
          });
          a.sum_g[row] += sum_of<acc_t>(sum);
          a.sum_gx[row] += sum_of<acc_t>(sum_x);
        }
      });
}

template <typename scalar_t, bool relu>
static void norm_sums_pixels_as(const NormSumsArgs& a, int64_t sample, int64_t begin, int64_t end) {
  using acc_t = Acc<scalar_t>;
  constexpr int64_t padded = kGradientSlab + kWidth<acc_t>;
  const BnActBackwardArgs& pass = a.pass;
  alignas(64) acc_t center[padded], sum[padded], sum_x[padded];
  for (int64_t first = begin; first < end; first += kGradientSlab) {
    const int64_t channels = least(kGradientSlab, end - first), row = sample * pass.c + first;
    const auto* x = static_cast<const scalar_t*>(pass.x) + sample * pass.s() * pass.c + first;
    const auto* k = static_cast<const acc_t*>(pass.k) + pass.scale_of(row);
    const auto* h = static_cast<const acc_t*>(pass.h) + pass.scale_of(row);
    for (int64_t c = 0; c < channels; ++c) {
      center[c] = static_cast<acc_t>(pass.mean[row + c]);
      sum[c] = sum_x[c] = 0;
      a.sum_g[row + c] = a.sum_gx[row + c] = 0.0;
    }
    for_pixel_gradients<scalar_t>(pass, sample, first, [&](int64_t pixel, const auto& gradient) {
      for_vectors<acc_t>(channels, [&](int64_t c, int64_t count) {
        const Vec<acc_t> v = get(x + pixel * pass.c + c, count);
        const Vec<acc_t> before = get(k + c, count) * v + get(h + c, count);
        const Vec<acc_t> g = mask<relu>(before, gradient(c, count));
        store(sum + c, load(sum + c) + g);
        store(sum_x + c, load(sum_x + c) + g * (v - load(center + c)));
      });
      if ((pixel + 1) % kBlockPixels != 0 && pixel + 1 != pass.s()) return;
      for (int64_t c = 0; c < channels; ++c) {
        a.sum_g[row + c] += sum[c];
        a.sum_gx[row + c] += sum_x[c];
        sum[c] = sum_x[c] = 0;
      }
    });
  }
}

template <typename scalar_t>
static void norm_sums_rows(const NormSumsArgs& a, int64_t begin, int64_t end) {
  a.pass.relu ? norm_sums_rows_as<scalar_t, true>(a, begin, end)
              : norm_sums_rows_as<scalar_t, false>(a, begin, end);
}

template <typename scalar_t>
static void norm_sums_pixels(const NormSumsArgs& a, int64_t sample, int64_t begin, int64_t end) {
  a.pass.relu ? norm_sums_pixels_as<scalar_t, true>(a, sample, begin, end)
              : norm_sums_pixels_as<scalar_t, false>(a, sample, begin, end);
}
