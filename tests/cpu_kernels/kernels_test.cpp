// Every CPU kernel of every instruction set this machine has, against plain loops in double.
//
// Buffers have exactly the size of their tensor, so a sanitizer sees any access outside.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "case.h"

namespace {

using ltdd::Conv3x3Kernels;

void check(const Case& t, bool relu, bool pool, bool with_residual, bool own_scale,
           std::mt19937& generator) {
  const Shape& shape = t.shape;
  const int64_t s = shape.s(), rows = shape.n * shape.c;
  const int64_t half = shape.width / 2, out_s = pool ? shape.height / 2 * half : s;
  const Storage row = t.row_storage();
  const auto x = random_values(shape.size(), generator, t.storage);
  const auto r = random_values(shape.size(), generator, t.storage);
  const auto gy = random_values(rows * out_s, generator, t.storage);
  const int64_t scales = own_scale ? rows : shape.c;
  const auto k = random_values(scales, generator, row), h = random_values(scales, generator, row);
  const auto g_mean = random_values(rows, generator, Storage::kDouble);
  const auto g_m2 = random_values(rows, generator, Storage::kDouble);
  const auto x_bytes = pack(x, t.storage), r_bytes = pack(r, t.storage);
  const auto gy_bytes = pack(gy, t.storage), k_bytes = pack(k, row), h_bytes = pack(h, row);
  std::vector<char> y(rows * out_s * item_bytes(t.storage)), dx(x_bytes.size()), dr(x_bytes.size());
  std::vector<double> mean(rows), m2(rows), mean2(rows), m22(rows);

  const ltdd::MomentsArgs moments{x_bytes.data(), shape.n, shape.c, s, mean.data(), m2.data()};
  t.call(t.run.moments_rows, t.run.moments_pixels, moments);
  const void* added = with_residual ? r_bytes.data() : nullptr;
  const ltdd::BnActArgs forward{x_bytes.data(), added,        k_bytes.data(), h_bytes.data(),
                                shape.n,        shape.c,      shape.height,   shape.width,
                                relu,           pool,         true,           own_scale,
                                y.data(),       mean2.data(), m22.data()};
  t.call(t.run.bn_act_rows, t.run.bn_act_pixels, forward);

  std::vector<double> before(shape.size()), row_mean(rows);
  for (int64_t n = 0; n < shape.n; ++n)
    for (int64_t c = 0; c < shape.c; ++c) {
      double sum = 0, squares = 0;
      for (int64_t p = 0; p < s; ++p) sum += x[t.at(n, c, p, s)];
      const double m = row_mean[n * shape.c + c] = sum / s;
      for (int64_t p = 0; p < s; ++p) {
        const int64_t at = t.at(n, c, p, s);
        squares += (x[at] - m) * (x[at] - m);
        const int64_t scale = own_scale ? n * shape.c + c : c;
        before[at] = k[scale] * x[at] + h[scale] + (with_residual ? r[at] : 0.0);
      }
      for (const auto* got : {&mean, &mean2})
        t.expect("mean", (*got)[n * shape.c + c], m, 1.0, 1e-6);
      for (const auto* got : {&m2, &m22})
        t.expect("m2", (*got)[n * shape.c + c], squares, squares, 1e-6);
      const auto act = [&](int64_t p) {
        const double v = before[t.at(n, c, p, s)];
        return relu && v <= 0 ? 0.0 : v;
      };
      for (int64_t q = 0; q < out_s; ++q) {
        const int64_t p = pool ? q / half * 2 * shape.width + q % half * 2 : q;
        const double want =
            pool ? (act(p) + act(p + 1) + act(p + shape.width) + act(p + shape.width + 1)) / 4
                 : act(p);
        t.expect("y", unpack(y, t.at(n, c, q, out_s), t.storage), want, 10.0, t.rounding());
      }
    }

  const ltdd::BnActBackwardArgs backward{g_mean.data(),  g_m2.data(),
                                         mean.data(),    gy_bytes.data(),
                                         x_bytes.data(), added,
                                         k_bytes.data(), h_bytes.data(),
                                         shape.n,        shape.c,
                                         shape.height,   shape.width,
                                         relu,           pool,
                                         false,          own_scale,
                                         dx.data(),      with_residual ? dr.data() : nullptr};
  t.call(t.run.bn_act_backward_rows, t.run.bn_act_backward_pixels, backward);
  std::vector<double> sum_g(rows), sum_gx(rows);
  const ltdd::NormSumsArgs sums{backward, sum_g.data(), sum_gx.data(), nullptr,
                                nullptr,  nullptr,      nullptr};
  if (!with_residual) t.call(t.run.norm_sums_rows, t.run.norm_sums_pixels, sums);
  std::vector<char> plain(x_bytes.size());
  const ltdd::MomentsBackwardArgs plain_backward{
      g_mean.data(), g_m2.data(), mean.data(),  x_bytes.data(), shape.n,
      shape.c,       s,           plain.data(), false};
  t.call(t.run.moments_backward_rows, t.run.moments_backward_pixels, plain_backward);
  for (int64_t n = 0; n < shape.n; ++n)
    for (int64_t c = 0; c < shape.c; ++c) {
      double want_g = 0, want_gx = 0, terms = 0;
      bool sure = true;
      const int64_t row_at = n * shape.c + c;
      for (int64_t p = 0; p < s; ++p) {
        const int64_t at = t.at(n, c, p, s), i = p / shape.width, j = p % shape.width;
        double g = 0;
        if (!pool)
          g = gy[at];
        else if (i / 2 < shape.height / 2 && j / 2 < half)
          g = gy[t.at(n, c, i / 2 * half + j / 2, out_s)] / 4;
        if (relu && before[at] <= 0) g = 0;
        const bool on_the_edge = relu && std::abs(before[at]) < 1e-5;
        want_g += g;
        want_gx += g * (x[at] - row_mean[row_at]);
        terms += std::abs(g) * (1 + std::abs(x[at] - row_mean[row_at]));
        sure &= !on_the_edge;
        const double moved = g_mean[row_at] / s + 2 * g_m2[row_at] * (x[at] - row_mean[row_at]);
        t.expect("plain dx", unpack(plain, at, t.storage), moved, 30.0, t.rounding());
        if (on_the_edge) continue;
        const double scale = k[own_scale ? row_at : c];
        t.expect("dx", unpack(dx, at, t.storage), scale * g + moved, 30.0, t.rounding());
        if (with_residual) t.expect("dresidual", unpack(dr, at, t.storage), g, 10.0, t.rounding());
      }
      if (with_residual || !sure) continue;
      t.expect("sum g", sum_g[row_at], want_g, terms, 1e-6);
      t.expect("sum g x", sum_gx[row_at], want_gx, terms, 1e-6);
    }
}

// The gradient of a trained norm's gradient, by sums and coefficients of every row.
void check_norm_double(const Case& t, bool relu, bool pool, bool own_scale,
                       std::mt19937& generator) {
  const Shape& shape = t.shape;
  const int64_t s = shape.s(), rows = shape.n * shape.c, width = shape.width;
  const int64_t half = width / 2, out_s = pool ? shape.height / 2 * half : s;
  const Storage row = t.row_storage();
  const auto x = random_values(shape.size(), generator, t.storage);
  const auto a = random_values(shape.size(), generator, t.storage);
  const auto gy = random_values(rows * out_s, generator, t.storage);
  const int64_t scales = own_scale ? rows : shape.c;
  const auto k = random_values(scales, generator, row), h = random_values(scales, generator, row);
  std::vector<std::vector<double>> table(7);  // mean, what a, g, x - mean and 1 count for
  for (auto& one : table) one = random_values(rows, generator, row);
  const auto x_bytes = pack(x, t.storage), a_bytes = pack(a, t.storage);
  const auto gy_bytes = pack(gy, t.storage), k_bytes = pack(k, row), h_bytes = pack(h, row);
  std::vector<char> dx(x_bytes.size()), gg_y(gy_bytes.size());
  std::vector<std::vector<double>> sums(5, std::vector<double>(rows));
  const ltdd::BnActBackwardArgs pass{table[1].data(),
                                     table[2].data(),
                                     table[0].data(),
                                     gy_bytes.data(),
                                     x_bytes.data(),
                                     nullptr,
                                     k_bytes.data(),
                                     h_bytes.data(),
                                     shape.n,
                                     shape.c,
                                     shape.height,
                                     width,
                                     relu,
                                     pool,
                                     true,
                                     own_scale,
                                     dx.data(),
                                     nullptr};
  const ltdd::NormSumsArgs sum_up{pass,           sums[0].data(), sums[1].data(), a_bytes.data(),
                                  sums[2].data(), sums[3].data(), sums[4].data()};
  t.call(t.run.norm_sums_rows, t.run.norm_sums_pixels, sum_up);
  const ltdd::NormDoubleArgs write{pass,
                                   a_bytes.data(),
                                   table[3].data(),
                                   table[4].data(),
                                   table[5].data(),
                                   table[6].data(),
                                   gg_y.data()};
  t.call(t.run.norm_double_rows, t.run.norm_double_pixels, write);
  for (int64_t n = 0; n < shape.n; ++n)
    for (int64_t c = 0; c < shape.c; ++c) {
      const int64_t r = n * shape.c + c, scale = own_scale ? r : c;
      double want[5] = {}, terms[5] = {};
      bool sure = true;
      std::vector<double> through(s);
      for (int64_t p = 0; p < s; ++p) {
        const int64_t at = t.at(n, c, p, s), i = p / width, j = p % width;
        const double before = k[scale] * x[at] + h[scale], d = x[at] - table[0][r];
        double g = 0;
        if (!pool)
          g = gy[at];
        else if (i / 2 < shape.height / 2 && j / 2 < half)
          g = gy[t.at(n, c, i / 2 * half + j / 2, out_s)] / 4;
        const bool open = !relu || before > 0;
        if (!open) g = 0;
        through[p] = open ? k[scale] * a[at] + table[5][r] / s + 2 * table[6][r] * d : 0.0;
        const double parts[] = {g, g * d, a[at], a[at] * d, a[at] * g};
        for (int kind = 0; kind < 5; ++kind) {
          want[kind] += parts[kind];
          terms[kind] += 1 + std::abs(parts[kind]);
        }
        const double moved = table[3][r] * a[at] + table[4][r] * g;
        const double got = unpack(dx, at, t.storage);
        if (relu && std::abs(before) < 1e-5)
          sure = false;
        else
          t.expect("double dx", got, moved + table[1][r] / s + 2 * table[2][r] * d, 60.0,
                   t.rounding());
      }
      for (int kind = 0; kind < 5 && sure; ++kind)
        t.expect("double sum", sums[kind][r], want[kind], terms[kind], 1e-6);
      for (int64_t q = 0; q < out_s && sure; ++q) {
        const int64_t p = pool ? q / half * 2 * width + q % half * 2 : q;
        const double mean =
            pool ? (through[p] + through[p + 1] + through[p + width] + through[p + width + 1]) / 4
                 : through[p];
        t.expect("gg y", unpack(gg_y, t.at(n, c, q, out_s), t.storage), mean, 60.0, t.rounding());
      }
    }
}

// Every finite number of a 16-bit type, read and written: unchanged, and the nearest to a product.
void check_numbers(const char* isa, const Kernels& run, Storage storage) {
  const Case t{isa, run, storage, {1, 1, 256, 256}, false};
  const bool half = storage == Storage::kHalf;
  std::vector<uint16_t> x(65536);
  const uint16_t infinity = half ? 0x7c00 : 0x7f80;
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = (i & 0x7fff) < infinity ? static_cast<uint16_t>(i) : 0;
  std::vector<char> bytes(2 * x.size()), y(bytes.size());
  std::memcpy(bytes.data(), x.data(), bytes.size());
  const float h = 0;
  for (const float k : {1.0f, 0.75f, 0.8765432f}) {  // 0.75: half of them lie in the middle
    run.bn_act_rows({bytes.data(), nullptr, &k, &h, 1, 1, 256, 256, false, false, k != 1.0f, false,
                     y.data(), nullptr, nullptr},
                    0, 1);
    for (size_t i = 0; i < x.size(); ++i) {
      const double value = unpack(bytes, i, storage);
      const double want = nearest(static_cast<float>(k * value), storage);
      t.expect("number", unpack(y, i, storage), want, 0.0, 0.0);
    }
  }
}

// Images of three classes, the last without any, in two batches and in one that is finished at
// once; within a channel range and outside it.
void check_classes(const char* isa, const Kernels& run, int64_t channels, std::mt19937& generator) {
  constexpr int64_t n = 9, classes = 3;
  const Case t{isa, run, Storage::kDouble, {n, channels, 1, 1}, false};
  const auto mean = random_values(n * channels, generator, Storage::kDouble);
  const auto m2 = random_values(n * channels, generator, Storage::kDouble);
  std::vector<int64_t> label(n), count(classes);
  std::vector<double> inverse_count(n);
  for (int64_t i = 0; i < n; ++i) {
    label[i] = i * i % classes;  // classes 0 and 1
    inverse_count[i] = 1.0 / static_cast<double>(++count[label[i]]);
  }
  using Table = std::vector<double>;
  const Table zeros(classes * channels);
  Table running[3] = {zeros, zeros, zeros}, finished[4] = {zeros, zeros, zeros, zeros};
  const auto add = [&](int64_t from, int64_t to, Table* state, double* total, int64_t begin,
                       int64_t end) {
    std::vector<int64_t> image, first{0};
    for (int64_t k = 0; k < classes; ++k) {
      for (int64_t i = from; i < to; ++i)
        if (label[i] == k) image.push_back(i);
      first.push_back(static_cast<int64_t>(image.size()));
    }
    for (int64_t k = 0; k < classes; ++k)
      run.add_images({mean.data(), m2.data(), image.data(), first.data(), inverse_count.data(),
                      channels, 1.0 / 16, state[0].data(), state[1].data(), state[2].data(), total},
                     k, begin, end);
  };
  const int64_t cut = channels / 2;
  add(0, 4, running, nullptr, 0, cut);
  add(0, 4, running, nullptr, cut, channels);
  add(4, n, running, nullptr, 0, channels);
  add(0, n, finished, finished[3].data(), 0, cut);
  add(0, n, finished, finished[3].data(), cut, channels);
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, sum_m2 = 0, squares = 0;
      for (int64_t i = 0; i < n; ++i)
        if (label[i] == k) {
          sum += mean[i * channels + c];
          sum_m2 += m2[i * channels + c] / 16;
        }
      const double images = static_cast<double>(count[k]), center = images > 0 ? sum / images : 0.0;
      for (int64_t i = 0; i < n; ++i)
        if (label[i] == k) squares += std::pow(mean[i * channels + c] - center, 2);
      const int64_t at = k * channels + c;
      t.expect("class mu", running[0][at], center, 1.0, 1e-12);
      t.expect("class within", running[1][at], sum_m2, 1.0, 1e-12);
      t.expect("class between", running[2][at], squares, 10.0, 1e-12);
      const double want[] = {center, sum_m2 / images, squares / images,
                             (sum_m2 + squares) / images};
      for (int table = 0; table < 4; ++table) {
        const double got = finished[table][at];
        if (images > 0)
          t.expect("statistics of a class", got, want[table], 10.0, 1e-12);
        else
          t.expect("NaN of a class without images", std::isnan(got), 1.0, 0.0, 0.0);
      }
    }
}

// A convolution in groups of images, and the gradient of its taps.
void check_conv3x3(const char* isa, const Kernels& any, const Conv3x3Kernels& run, Storage storage,
                   const Shape& shape, int64_t out, std::mt19937& generator) {
  const Case t{isa, any, storage, shape, true};
  const int64_t in = shape.c, h = shape.height, w = shape.width, s = shape.s(), n = shape.n;
  const auto x = random_values(shape.size(), generator, storage);
  const auto gy = random_values(n * s * out, generator, storage);
  // Values that a 16-bit type has: what tiles round of others is no error of theirs.
  const auto taps = random_values(9 * in * out, generator, storage);  // [9, in, out]
  const auto bias = random_values(out, generator, Storage::kFloat);
  const auto x_bytes = pack(x, storage), gy_bytes = pack(gy, storage);
  const std::vector<float> ftaps(taps.begin(), taps.end()), fbias(bias.begin(), bias.end());
  const int64_t size = run.backward.table_size(in, out);
  const Lines packed(run.forward.packed_size(in, out)), tables(2 * size);
  const Lines scratch(
      std::max(run.forward.scratch_size(h, w, in, out), run.backward.scratch_size(h, w, in, out)));
  const Lines room(9 * ltdd::kLine * out);
  std::vector<char> y(n * s * out * item_bytes(storage));
  std::vector<float> grad(9 * in * out);  // [out, 9, in]
  for (int64_t k = 0; k < in; k += ltdd::kLine)
    run.forward.pack(ftaps.data(), in, out, k, std::min(in, k + ltdd::kLine), packed.data());
  const ltdd::Conv3x3Args forward{x_bytes.data(), packed.data(), fbias.data(), h, w, in, out,
                                  true,           y.data()};
  const ltdd::Conv3x3BackwardArgs backward{x_bytes.data(), gy_bytes.data(), h, w, in, out};
  int64_t together = run.forward.images_together(h, w);
  for (int64_t first = 0; first < n; first += together)
    run.forward.run(forward, first, std::min(n, first + together), scratch.data());
  // All images into one table, those of the first group into another.
  together = run.backward.images_together(h, w);
  for (int64_t first = 0; first < n; first += together)
    run.backward.run(backward, first, std::min(n, first + together), first > 0, tables.data(),
                     scratch.data());
  const int64_t twice = std::min(n, together);
  run.backward.run(backward, 0, twice, false, tables.data() + size, scratch.data());
  for (int64_t k = 0; k < in; k += ltdd::kLine)
    run.backward.unpack(tables.data(), 2, in, out, k, std::min(in, k + ltdd::kLine), room.data(),
                        grad.data());
  std::vector<double> sums(out), want_sums(out);
  run.backward.sum_pixels(backward, 0, n, sums.data());

  std::vector<double> want(9 * in * out), terms(9 * in * out);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t p = 0; p < s; ++p)
      for (int64_t o = 0; o < out; ++o) {
        double sum = bias[o], largest = std::abs(bias[o]);
        want_sums[o] += gy[(i * s + p) * out + o];
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t row = p / w + tap / 3 - 1, column = p % w + tap % 3 - 1;
          if (row < 0 || row >= h || column < 0 || column >= w) continue;
          for (int64_t k = 0; k < in; ++k) {
            const double value = x[(i * s + row * w + column) * in + k];
            const int64_t at = (o * 9 + tap) * in + k;
            sum += taps[(tap * in + k) * out + o] * value;
            largest += std::abs(taps[(tap * in + k) * out + o] * value);
            const double g = gy[(i * s + p) * out + o] * value * (i < twice ? 2 : 1);
            want[at] += g;
            terms[at] += std::abs(g);
          }
        }
        t.expect("conv y", unpack(y, (i * s + p) * out + o, storage), sum, largest + 30,
                 storage == Storage::kFloat ? 1e-5 : 1.0 / 256);
      }
  for (size_t at = 0; at < want.size(); ++at)
    t.expect("conv taps", grad[at], want[at], terms[at] + 30, 1e-5);
  for (int64_t o = 0; o < out; ++o)
    t.expect("conv bias", sums[o], want_sums[o], static_cast<double>(4 * n * s), 1e-6);
}

}  // namespace

int main() {
  struct {
    const char* name;
    const Kernels& (*kernels)(Storage);
    const Conv3x3Kernels& (*conv3x3)(Storage, int64_t, int64_t);
    bool here;
  } const sets[] = {
      {"baseline", ltdd::baseline_kernels, ltdd::baseline_conv3x3_kernels, true},
#if defined(__x86_64__)
      {"avx2", ltdd::avx2_kernels, ltdd::avx2_conv3x3_kernels, ltdd::has_x86_64_v3()},
      {"avx512", ltdd::avx512_kernels, ltdd::avx512_conv3x3_kernels, ltdd::has_x86_64_v4()},
      {"amx", ltdd::avx512_kernels, ltdd::amx_conv3x3_kernels, ltdd::has_amx()},
#endif
  };
  const Shape shapes[] = {{2, 3, 8, 8},   {3, 19, 7, 7}, {1, 33, 4, 4},   {2, 5, 9, 6},
                          {1, 2, 40, 51}, {2, 70, 2, 2}, {1, 3, 2, 1100}, {1, 1, 3, 2},
                          {3, 11, 2, 4},  {2, 9, 4, 8}};
  const std::pair<Shape, int64_t> convolutions[] = {
      {{2, 5, 8, 8}, 7},  {{30, 17, 5, 9}, 34}, {{50, 9, 1, 1}, 1}, {{2, 40, 4, 13}, 16},
      {{3, 3, 8, 8}, 32}, {{2, 1, 5, 31}, 3},   {{3, 21, 6, 7}, 4}, {{2, 32, 3, 2}, 8}};
  std::mt19937 generator(7);
  int cases = 0;
  for (const auto& set : sets) {
    if (!set.here) {
      std::printf("%s: this machine does not have it\n", set.name);
      continue;
    }
    for (const Storage storage :
         {Storage::kFloat, Storage::kDouble, Storage::kBFloat16, Storage::kHalf})
      for (const Shape& shape : shapes)
        for (int bits = 0; bits < 32; ++bits, ++cases)
          check({set.name, set.kernels(storage), storage, shape, (bits & 1) != 0}, (bits & 2) != 0,
                (bits & 4) != 0, (bits & 8) != 0, (bits & 16) != 0, generator);
    for (const Storage storage :
         {Storage::kFloat, Storage::kDouble, Storage::kBFloat16, Storage::kHalf})
      for (const Shape& shape : shapes)
        for (int bits = 0; bits < 16; ++bits, ++cases)
          check_norm_double({set.name, set.kernels(storage), storage, shape, (bits & 1) != 0},
                            (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0, generator);
    for (const Storage storage : {Storage::kBFloat16, Storage::kHalf}) {
      check_numbers(set.name, set.kernels(storage), storage);
      ++cases;
    }
    for (const int64_t channels : {1, 3, 8, 67, 130}) {
      check_classes(set.name, set.kernels(Storage::kDouble), channels, generator);
      ++cases;
    }
    for (const Storage storage : {Storage::kFloat, Storage::kBFloat16})
      for (const auto& [shape, out] : convolutions) {
        check_conv3x3(set.name, set.kernels(storage), set.conv3x3(storage, shape.c, out), storage,
                      shape, out, generator);
        ++cases;
      }
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures == 0 ? 0 : 1;
}
