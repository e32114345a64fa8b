// class_moments_* against a plain two-pass in double, and bit for bit against another batching.

#include <cmath>
#include <vector>

#include "harness.h"

namespace {

using namespace harness;
using ltdd::cuda::ClassState;

constexpr int64_t kSize = 49;

struct State {
  State(int64_t k, int64_t c)
      : classes(k), channels(c), count(k), mu(k * c), within(k * c), between(k * c) {
    for (int64_t i = 0; i < k; ++i) count[i] = 0;
    for (int64_t i = 0; i < k * c; ++i) mu[i] = within[i] = between[i] = 0;
  }
  ClassState view() {
    return {count.data(), mu.data(), within.data(), between.data(), classes, channels};
  }
  void keep() const {
    record(count);
    record(mu);
    record(within);
    record(between);
  }

  int64_t classes, channels;
  Buffer<int64_t> count;
  Buffer<double> mu, within, between;
};

template <typename row_t>
struct Rows {
  Buffer<row_t> mean, m2;
  Buffer<int64_t> label;
};

template <typename row_t>
Rows<row_t> make_rows(int64_t images, int64_t channels, int64_t classes) {
  Rows<row_t> rows{numbers<row_t>(11, images * channels, 0.5),
                   numbers<row_t>(12, images * channels, 2.0), Buffer<int64_t>(images)};
  // Uneven classes, one of them empty (classes - 1), one with one image, some labels out of range.
  for (int64_t i = 0; i < images; ++i) {
    const double place = std::fabs(number(13, i));
    rows.label[i] = static_cast<int64_t>(place * place * static_cast<double>(classes - 1));
    if (rows.label[i] == 1) rows.label[i] = 0;
  }
  if (images > 3) rows.label[2] = 1;
  if (images > 10) rows.label[7] = -1;
  if (images > 10) rows.label[9] = classes;
  return rows;
}

template <typename row_t>
void update(State& state, const Rows<row_t>& rows, int64_t begin, int64_t end) {
  ltdd::cuda::class_moments_update(state.view(), type_of<row_t>,
                                   rows.mean.data() + begin * state.channels,
                                   rows.m2.data() + begin * state.channels, kSize,
                                   rows.label.data() + begin, end - begin, nullptr);
}

// The statistics of one batch are those of an empty state with this batch, bit for bit; a label out
// of range leaves no number.
template <typename row_t>
void check_batch(const std::string& what, const Rows<row_t>& rows, const State& state,
                 const std::vector<const Buffer<double>*>& wanted) {
  const int64_t entries = state.classes * state.channels;
  const int64_t images = static_cast<int64_t>(rows.label.size());
  Buffer<double> mean(rows.mean.size()), m2(rows.mean.size());
  for (size_t i = 0; i < mean.size(); ++i) {
    mean[i] = rows.mean.value(i);
    m2[i] = rows.m2.value(i);
  }
  bool stray = false;
  for (int64_t i = 0; i < images; ++i)
    stray = stray || rows.label[i] < 0 || rows.label[i] >= state.classes;
  Buffer<int64_t> label(images);
  for (const bool keep : {true, false}) {
    for (int64_t i = 0; i < images; ++i) {
      const bool inside = rows.label[i] >= 0 && rows.label[i] < state.classes;
      label[i] = inside || keep ? rows.label[i] : 0;
    }
    State other(state.classes, state.channels);
    Buffer<double> expected[4] = {Buffer<double>(entries), Buffer<double>(entries),
                                  Buffer<double>(entries), Buffer<double>(entries)};
    ltdd::cuda::class_moments_update(other.view(), Type::kFloat64, mean.data(), m2.data(), kSize,
                                     label.data(), images, nullptr);
    ltdd::cuda::class_moments_finish(other.view(), expected[0].data(), expected[1].data(),
                                     expected[2].data(), expected[3].data(), nullptr);
    Buffer<double> got[4] = {Buffer<double>(entries), Buffer<double>(entries),
                             Buffer<double>(entries), Buffer<double>(entries)};
    ltdd::cuda::class_moments_batch(mean.data(), m2.data(), kSize, label.data(), images,
                                    state.classes, state.channels, got[0].data(), got[1].data(),
                                    got[2].data(), got[3].data(), nullptr);
    for (int part = 0; part < 4; ++part)
      for (int64_t i = 0; i < entries; ++i) {
        const double want = stray && keep ? NAN : expected[part][i];
        expect(got[part][i] == want || (std::isnan(got[part][i]) && std::isnan(want)),
               what + ": one batch at once");
        if (!stray) expect_close(what + " batch", i, got[part][i], (*wanted[part])[i], 0);
      }
  }
}

template <typename row_t>
void check_update(int64_t images, int64_t channels, int64_t classes) {
  const std::string what = "class_moments " + std::to_string(images) + "x" +
                           std::to_string(channels) + " classes " + std::to_string(classes);
  const auto rows = make_rows<row_t>(images, channels, classes);
  State state(classes, channels);
  update(state, rows, 0, images);
  state.keep();
  Buffer<double> mean(classes * channels), within(classes * channels), between(classes * channels),
      total(classes * channels);
  ltdd::cuda::class_moments_finish(state.view(), mean.data(), within.data(), between.data(),
                                   total.data(), nullptr);
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t c = 0; c < channels; ++c) {
      double count = 0, mu = 0, inside = 0, across = 0;
      const auto each = [&](auto&& body) {
        for (int64_t i = 0; i < images; ++i)
          if (rows.label[i] == k) body(i * channels + c);
      };
      each([&](int64_t at) { ++count, mu += rows.mean.value(at), inside += rows.m2.value(at); });
      mu /= count;
      inside /= kSize * count;
      each([&](int64_t at) { across += std::pow(rows.mean.value(at) - mu, 2); });
      across /= count;
      const size_t at = k * channels + c;
      expect(state.count[k] == static_cast<int64_t>(count), what + " count");
      expect_close(what + " mean", at, mean[at], mu, 1e-13);
      expect_close(what + " within", at, within[at], inside, 1e-13);
      expect_close(what + " between", at, between[at], across, 1e-13);
      expect_close(what + " total", at, total[at], inside + across, 1e-13);
    }

  check_batch(what, rows, state, {&mean, &within, &between, &total});

  State in_parts(classes, channels);
  for (int64_t begin = 0; begin < images; begin += 7)
    update(in_parts, rows, begin, std::min(begin + 7, images));
  for (int64_t i = 0; i < classes * channels; ++i)
    expect(in_parts.mu[i] == state.mu[i] && in_parts.within[i] == state.within[i] &&
               in_parts.between[i] == state.between[i],
           what + ": the split into batches changes no bit");

  State left(classes, channels), right(classes, channels);
  update(left, rows, 0, images / 3);
  update(right, rows, images / 3, images);
  ltdd::cuda::class_moments_merge(left.view(), right.view(), nullptr);
  left.keep();
  for (int64_t i = 0; i < classes * channels; ++i) {
    expect_close(what + " merged mu", i, left.mu[i], state.mu[i], 1e-13);
    expect_close(what + " merged within", i, left.within[i], state.within[i], 1e-11);
    expect_close(what + " merged between", i, left.between[i], state.between[i], 1e-11);
  }
  for (int64_t k = 0; k < classes; ++k)
    expect(left.count[k] == state.count[k], what + " merged count");
}

}  // namespace

void test_class_moments() {
  check_update<float>(40, 130, 5);
  check_update<float>(1, 3, 4);
  check_update<float>(0, 3, 4);
  check_update<float>(67, 1, 100);
  check_update<double>(33, 16, 3);
}
