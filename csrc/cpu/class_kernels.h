// Statistics of classes: add_image of common/moments.h for vectors of channels. What grows with a
// class stays in registers until its last image: the rows of all classes may lie a power of two
// apart, where the caches cannot hold them. Included by isa_*.cpp after elementwise_kernels.h.

// `vectors` vectors of channels from c on, the last of them with `count` lanes.
template <int64_t vectors>
static inline void add_images_to(const AddImagesArgs& a, int64_t k, int64_t c, int64_t count) {
  constexpr int64_t w = kWidth<double>;
  const int64_t at = k * a.c + c, first = a.first[k], last = a.first[k + 1];
  const bool running = a.total == nullptr;
  Vec<double> mu[vectors], within[vectors], between[vectors];
#pragma GCC unroll 4
  for (int64_t v = 0; v < vectors; ++v) {
    mu[v] = running ? get(a.mu + at + v * w, count) : Vec<double>{};
    within[v] = running ? get(a.within + at + v * w, count) : Vec<double>{};
    between[v] = running ? get(a.between + at + v * w, count) : Vec<double>{};
  }
  for (int64_t j = first; j < last; ++j) {
    const int64_t row = a.image[j] * a.c + c;
    const Vec<double> inverse_count = broadcast<double>(a.inverse_count[a.image[j]]);
#pragma GCC unroll 4
    for (int64_t v = 0; v < vectors; ++v) {
      const Vec<double> mean = get(a.mean + row + v * w, count), delta = mean - mu[v];
      const Vec<double> var = get(a.m2 + row + v * w, count) * a.inverse_size;
      mu[v] += delta * inverse_count;
      between[v] += delta * (mean - mu[v]);
      within[v] += var;
    }
  }
  const double images = static_cast<double>(last - first);
#pragma GCC unroll 4
  for (int64_t v = 0; v < vectors; ++v) {
    if (!running) {
      if (images == 0) mu[v] /= images;  // a class that is not there has no statistics: NaN
      within[v] /= images;
      between[v] /= images;
      set(a.total + at + v * w, within[v] + between[v], count, false);
    }
    set(a.mu + at + v * w, mu[v], count, false);
    set(a.within + at + v * w, within[v], count, false);
    set(a.between + at + v * w, between[v], count, false);
  }
}

static void add_images(const AddImagesArgs& a, int64_t k, int64_t begin, int64_t end) {
  constexpr int64_t w = kWidth<double>;
  int64_t c = begin;
  for (; c + 4 * w <= end; c += 4 * w) add_images_to<4>(a, k, c, w);
  for (; c < end; c += w) add_images_to<1>(a, k, c, least(w, end - c));
}
