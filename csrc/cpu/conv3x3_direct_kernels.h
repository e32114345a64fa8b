// 3x3 convolution of NHWC images of few channels, by its definition. Included by isa_*.cpp after
// panel_kernels.h, see vec.h.
//
// The 3x3 neighbourhoods of an image row are a matrix (pixels x 9 in) small enough for the
// first-level cache; y is its product with the taps, the gradient of the taps its transpose's with
// dy.

// A row of an image on its way through the products.
struct PatchRow {
  int64_t width, in, out;

  int64_t depth() const { return 9 * in; }
  int64_t columns() const { return rounded_up(out, kPanel); }
  int64_t pixels() const { return rounded_up(width, kRowsTogether); }
  // The last rows of a transposed product read past what is theirs.
  int64_t patches_size() const { return pixels() * depth() + kRowsTogether; }
};

// patches[pixel, tap, channel] of image row i; outside of the image they are zero.
template <typename scalar_t>
static inline void gather_patches(const scalar_t* image, int64_t height, const PatchRow& row,
                                  int64_t i, float* patches) {
  const int64_t in = row.in, width = row.width;
  for (int64_t j = 0; j < width; ++j)
    for (int64_t a = 0; a < 3; ++a) {
      float* to = patches + j * row.depth() + 3 * a * in;
      const int64_t p = i + a - 1;
      for (int64_t b = 0; b < 3; ++b) {
        const int64_t q = j + b - 1;
        const bool inside = p >= 0 && p < height && q >= 0 && q < width;
        for (int64_t c = 0; c < in; ++c)
          to[b * in + c] = inside ? widened(image[(p * width + q) * in + c]) : 0.0f;
      }
    }
}

static int64_t direct_images_together(int64_t, int64_t) { return 1; }

static int64_t direct_scratch_size(int64_t, int64_t width, int64_t in, int64_t out) {
  const PatchRow row{width, in, out};
  return row.patches_size() + row.pixels() * row.columns();
}

static int64_t direct_packed_size(int64_t in, int64_t out) {
  return 9 * in * rounded_up(out, kPanel);
}

static int64_t direct_table_size(int64_t in, int64_t out) {
  return rounded_up(9 * in, kRowsTogether) * rounded_up(out, kPanel);
}

// taps [9, in, out] -> panels [out / kPanel, 9, in, kPanel], for the given input channels.
static void direct_pack(const float* taps, int64_t in, int64_t out, int64_t begin, int64_t end,
                        float* packed) {
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t k = begin; k < end; ++k)
      for (int64_t c = 0; c < rounded_up(out, kPanel); ++c)
        packed[(c / kPanel * 9 * in + t * in + k) * kPanel + c % kPanel] =
            c < out ? taps[(t * in + k) * out + c] : 0.0f;
}

template <typename scalar_t>
static void direct_forward(const Conv3x3Args& a, int64_t first, int64_t last, float* scratch) {
  const PatchRow row{a.width, a.in, a.out};
  float* const patches = scratch;
  float* const product = scratch + row.patches_size();
  const bool stream = a.stream && can_stream<scalar_t>(a.y, a.out);
  for (int64_t image = first; image < last; ++image)
    for (int64_t i = 0; i < a.height; ++i) {
      gather_patches(static_cast<const scalar_t*>(a.x) + image * a.height * a.width * a.in,
                     a.height, row, i, patches);
      for (int64_t panel = 0; panel < row.columns(); panel += kPanel)
        for (int64_t j = 0; j < a.width; j += kRowsTogether)
          multiply_panel<false>(patches + j * row.depth(), row.depth(), 1,
                                a.packed + panel * row.depth(), kPanel, row.depth(),
                                product + j * row.columns() + panel, row.columns());
      scalar_t* y = static_cast<scalar_t*>(a.y) + (image * a.height + i) * a.width * a.out;
      for (int64_t j = 0; j < a.width; ++j)
        for_vectors<float>(a.out, [&](int64_t c, int64_t count) {
          set(y + j * a.out + c, load(product + j * row.columns() + c) + get(a.bias + c, count),
              count, stream);
        });
    }
  finish_streaming(stream);
}

// What the images add to the gradient of the taps, [9 in, out] with both padded to whole products.
template <typename scalar_t>
static void direct_backward(const Conv3x3BackwardArgs& a, int64_t first, int64_t last, bool add,
                            float* table, float* scratch) {
  const PatchRow row{a.width, a.in, a.out};
  float* const patches = scratch;
  float* const grads = scratch + row.patches_size();
  if (!add)
    __builtin_memset(table, 0, static_cast<size_t>(direct_table_size(a.in, a.out)) * sizeof(float));
  for (int64_t image = first; image < last; ++image)
    for (int64_t i = 0; i < a.height; ++i) {
      gather_patches(static_cast<const scalar_t*>(a.x) + image * a.height * a.width * a.in,
                     a.height, row, i, patches);
      const scalar_t* grad_y =
          static_cast<const scalar_t*>(a.grad_y) + (image * a.height + i) * a.width * a.out;
      for (int64_t j = 0; j < a.width; ++j)
        for_vectors<float>(a.out, [&](int64_t c, int64_t count) {
          store(grads + j * row.columns() + c, get(grad_y + j * a.out + c, count));
        });
      for (int64_t panel = 0; panel < row.columns(); panel += kPanel)
        for (int64_t k = 0; k < row.depth(); k += kRowsTogether)
          multiply_panel<true>(patches + k, 1, row.depth(), grads + panel, row.columns(), a.width,
                               table + k * row.columns() + panel, row.columns());
    }
}

static void direct_unpack(const float* tables, int64_t count, int64_t in, int64_t out,
                          int64_t begin, int64_t end, float*, float* weight) {
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t k = begin; k < end; ++k)
      for (int64_t c = 0; c < out; ++c) {
        const float* at = tables + (t * in + k) * rounded_up(out, kPanel) + c;
        float sum = 0.0f;
        for (int64_t table = 0; table < count; ++table)
          sum += at[table * direct_table_size(in, out)];
        weight[(c * 9 + t) * in + k] = sum;
      }
}

template <typename scalar_t>
constexpr Conv3x3Forward kDirectForward = {direct_images_together, direct_scratch_size,
                                           direct_packed_size, direct_pack,
                                           direct_forward<scalar_t>};
template <typename scalar_t>
constexpr Conv3x3Backward kDirectBackward = {direct_images_together, direct_scratch_size,
                                             direct_table_size,      direct_backward<scalar_t>,
                                             direct_unpack,          sum_pixels<scalar_t>};
