// Running statistics of classes: add_image of common/moments.h for a vector of channels at a time.
// Included by isa_*.cpp after vec.h.

template <typename scalar_t>
static void add_images(const AddImagesArgs& a, int64_t begin, int64_t end) {
  const auto* means = static_cast<const scalar_t*>(a.mean);
  const auto* m2s = static_cast<const scalar_t*>(a.m2);
  for (int64_t i = 0; i < a.n; ++i) {
    const int64_t at = a.label[i] * a.c;
    const scalar_t *mean = means + i * a.c, *m2 = m2s + i * a.c;
    double *mu = a.mu + at, *within = a.within + at, *between = a.between + at;
    const double inverse_count = a.inverse_count[i], inverse_size = a.inverse_size;
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
    for (int64_t c = begin; c < end; ++c) {
      ClassChannelState one{mu[c], within[c], between[c]};
      add_image(one, inverse_count, static_cast<double>(mean[c]),
                static_cast<double>(m2[c]) * inverse_size);
      mu[c] = one.mu;
      within[c] = one.within;
      between[c] = one.between;
    }
  }
}
