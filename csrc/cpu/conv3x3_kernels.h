// 3x3 convolution of NHWC images by Winograd's F(4x4, 3x3) (arXiv:1509.09308). Included by
// isa_*.cpp after panel_kernels.h, see vec.h.
//
// An image is cut into tiles of 4x4 outputs, which see 6x6 inputs d. With the taps w of a pair of
// channels, U = G w G', V = B' d B and y = A' (sum over channels of U V) A: 36 products of matrices
// (tiles x channels) instead of 9 times 16 multiplications a tile, a quarter of the work. All of it
// is linear: the gradient of U is V times A dy A', that of w is G' (dU) G. The gradient of x is the
// convolution of dy with the taps mirrored. A group of images is small enough for V and the
// products to stay in the cache.

constexpr int64_t kTile = 4, kWindow = 6, kPlanes = kWindow * kWindow;
constexpr int64_t kPlanePadding = 16;   // keeps planes out of each other's cache sets
constexpr int64_t kTilesTogether = 48;  // enough rows for the products, few enough for the cache

// B', 6 -> 6.
static inline void window_of_inputs(const VecF* d, VecF* v) {
  const VecF a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1];
  const VecF c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
  v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  v[1] = a + b;
  v[2] = a - b;
  v[3] = c + e;
  v[4] = c - e;
  v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// A', 6 -> 4.
static inline void outputs_of_window(const VecF* m, VecF* y) {
  const VecF s = m[1] + m[2], t = m[1] - m[2], p = m[3] + m[4], q = m[3] - m[4];
  y[0] = m[0] + s + p;
  y[1] = t + 2.0f * q;
  y[2] = s + 4.0f * p;
  y[3] = t + 8.0f * q + m[5];
}

// A, 4 -> 6: the transpose of outputs_of_window.
static inline void window_of_outputs(const VecF* y, VecF* m) {
  const VecF s = y[0] + y[2], t = y[1] + y[3], p = y[0] + 4.0f * y[2];
  const VecF q = 2.0f * y[1] + 8.0f * y[3];
  m[0] = y[0];
  m[1] = s + t;
  m[2] = s - t;
  m[3] = p + q;
  m[4] = p - q;
  m[5] = y[3];
}

// G, 3 -> 6.
static inline void window_of_taps(const VecF* w, VecF* u) {
  const VecF a = (-1.0f / 6) * (w[0] + w[2]), b = (1.0f / 6) * w[1];
  const VecF c = (1.0f / 24) * w[0] + (1.0f / 6) * w[2], e = (1.0f / 12) * w[1];
  u[0] = 0.25f * w[0];
  u[1] = a - b;
  u[2] = a + b;
  u[3] = c + e;
  u[4] = c - e;
  u[5] = w[2];
}

// G', 6 -> 3: the transpose of window_of_taps.
static inline void taps_of_window(const VecF* u, VecF* w) {
  const VecF s = (1.0f / 6) * (u[1] + u[2]), p = u[3] + u[4];
  w[0] = 0.25f * u[0] - s + (1.0f / 24) * p;
  w[1] = (1.0f / 6) * (u[2] - u[1]) + (1.0f / 12) * (u[3] - u[4]);
  w[2] = (1.0f / 6) * p - s + u[5];
}

// Applies a transform of vectors to both axes: in [from, from] -> out [to, to], row by row.
template <int64_t from, int64_t to, typename Transform>
[[gnu::always_inline]] static inline void both_axes(const VecF* in, VecF* out,
                                                    const Transform& transform) {
  VecF half[to * from], column[from], made[to];
#pragma GCC unroll 6
  for (int64_t j = 0; j < from; ++j) {
#pragma GCC unroll 6
    for (int64_t i = 0; i < from; ++i) column[i] = in[i * from + j];
    transform(column, made);
#pragma GCC unroll 6
    for (int64_t i = 0; i < to; ++i) half[i * from + j] = made[i];
  }
#pragma GCC unroll 6
  for (int64_t i = 0; i < to; ++i) transform(half + i * from, out + i * to);
}

// 36 matrices of `rows` x `columns`, the columns padded to panels.
struct Planes {
  float* data;
  int64_t stride, plane;  // between rows, between matrices

  Planes(float* at, int64_t rows, int64_t columns)
      : data(at), stride(rounded_up(columns, kPanel)), plane(size(rows, columns) / kPlanes) {}

  static int64_t size(int64_t rows, int64_t columns) {
    const int64_t whole = rounded_up(rows, kRowsTogether);
    return kPlanes * (whole * rounded_up(columns, kPanel) + kPlanePadding);
  }
};

// A group of images on the way through the products.
struct TileGrid {
  int64_t height, width;

  int64_t down() const { return (height + kTile - 1) / kTile; }
  int64_t across() const { return (width + kTile - 1) / kTile; }
  int64_t of_image() const { return down() * across(); }
};

// Calls visit(image, tile, i, j): the tile's place among those of all images, the corner of its
// outputs.
template <typename Visit>
static inline void for_tiles(const TileGrid& grid, int64_t images, const Visit& visit) {
  for (int64_t image = 0, tile = 0; image < images; ++image)
    for (int64_t i = 0; i < grid.down(); ++i)
      for (int64_t j = 0; j < grid.across(); ++j, ++tile) visit(image, tile, i * kTile, j * kTile);
}

// Planes of images (pixels of `channels`) under a transform of size x size pixels, the first of
// which lies at `offset` from the corner of the tile; pixels outside of the image are zero.
template <int64_t size, int64_t offset, typename scalar_t, typename Transform>
static inline void planes_of_images(const scalar_t* x, const TileGrid& grid, int64_t images,
                                    int64_t channels, const Planes& to,
                                    const Transform& transform) {
  for_tiles(grid, images, [&](int64_t image, int64_t tile, int64_t top, int64_t left) {
    const scalar_t* from = x + image * grid.height * grid.width * channels;
    float* row = to.data + tile * to.stride;
    for_vectors<float>(channels, [&](int64_t c, int64_t count) {
      VecF in[size * size], out[kPlanes];
#pragma GCC unroll 6
      for (int64_t i = 0; i < size; ++i)
#pragma GCC unroll 6
        for (int64_t j = 0; j < size; ++j) {
          const int64_t p = top + offset + i, q = left + offset + j;
          const bool inside = p >= 0 && p < grid.height && q >= 0 && q < grid.width;
          in[i * size + j] =
              inside ? get(from + (p * grid.width + q) * channels + c, count) : VecF{};
        }
      both_axes<size, kWindow>(in, out, transform);
#pragma GCC unroll 6
      for (int64_t f = 0; f < kPlanes; ++f) store(row + f * to.plane + c, out[f]);
    });
  });
}

// Floats from one of the packed planes of taps to the next.
static inline int64_t winograd_packed_plane(int64_t in, int64_t padded_out) {
  return in * padded_out + kPlanePadding;
}

// out = in times the packed taps (winograd_pack), plane by plane, for `tiles` rows.
static inline void multiply_planes(const Planes& in, const float* packed, int64_t tiles,
                                   int64_t depth, const Planes& out) {
  for (int64_t f = 0; f < kPlanes; ++f)
    for (int64_t panel = 0; panel < out.stride; panel += kPanel) {
      const float* b = packed + f * winograd_packed_plane(depth, out.stride) + panel * depth;
      for (int64_t row = 0; row < tiles; row += kRowsTogether)
        multiply_panel<false>(in.data + f * in.plane + row * in.stride, in.stride, 1, b, kPanel,
                              depth, out.data + f * out.plane + row * out.stride + panel,
                              out.stride);
    }
}

static int64_t winograd_images_together(int64_t height, int64_t width) {
  return most(1, kTilesTogether / most(1, TileGrid{height, width}.of_image()));
}

static int64_t winograd_scratch_size(int64_t height, int64_t width, int64_t in, int64_t out) {
  const int64_t tiles =
      winograd_images_together(height, width) * TileGrid{height, width}.of_image();
  // The last rows of a product read past what is theirs.
  return Planes::size(tiles, in) + Planes::size(tiles, out) + 2 * kPanel;
}

static int64_t winograd_packed_size(int64_t in, int64_t out) {
  return kPlanes * winograd_packed_plane(in, rounded_up(out, kPanel));
}

static int64_t winograd_table_size(int64_t in, int64_t out) { return Planes::size(in, out); }

// taps [9, depth, columns] -> their windows as panels [36, columns / kPanel, depth, kPanel], for
// the given depths.
static void winograd_pack(const float* taps, int64_t depth, int64_t columns, int64_t begin,
                          int64_t end, float* packed) {
  const int64_t padded = rounded_up(columns, kPanel);
  const int64_t plane = winograd_packed_plane(depth, padded);
  for (int64_t k = begin; k < end; ++k)
    for (int64_t c = 0; c < padded; c += kWidth<float>) {
      VecF in[9], out[kPlanes];
      const int64_t count = most(0, least(kWidth<float>, columns - c));
      for (int64_t t = 0; t < 9; ++t)
        in[t] = count > 0 ? get(taps + (t * depth + k) * columns + c, count) : VecF{};
      both_axes<3, kWindow>(in, out, window_of_taps);
      float* to = packed + c / kPanel * kPanel * depth + k * kPanel + c % kPanel;
      for (int64_t f = 0; f < kPlanes; ++f) store(to + f * plane, out[f]);
    }
}

template <typename scalar_t>
static void winograd_forward(const Conv3x3Args& a, int64_t first, int64_t last, float* scratch) {
  const TileGrid grid{a.height, a.width};
  const int64_t images = last - first, tiles = images * grid.of_image();
  const Planes v(scratch, tiles, a.in), m(scratch + Planes::size(tiles, a.in), tiles, a.out);
  const auto* x = static_cast<const scalar_t*>(a.x) + first * a.height * a.width * a.in;
  planes_of_images<kWindow, -1>(x, grid, images, a.in, v, window_of_inputs);
  multiply_planes(v, a.packed, tiles, a.in, m);
  auto* y = static_cast<scalar_t*>(a.y) + first * a.height * a.width * a.out;
  for_tiles(grid, images, [&](int64_t image, int64_t tile, int64_t top, int64_t left) {
    scalar_t* to = y + image * a.height * a.width * a.out;
    for_vectors<float>(a.out, [&](int64_t c, int64_t count) {
      VecF in[kPlanes], out[kTile * kTile];
      for (int64_t f = 0; f < kPlanes; ++f)
        in[f] = load(m.data + f * m.plane + tile * m.stride + c);
      both_axes<kWindow, kTile>(in, out, outputs_of_window);
      const VecF bias = get(a.bias + c, count);
      for (int64_t i = 0; i < least(kTile, a.height - top); ++i)
        for (int64_t j = 0; j < least(kTile, a.width - left); ++j)
          set(to + ((top + i) * a.width + left + j) * a.out + c, out[i * kTile + j] + bias, count,
              false);
    });
  });
}

// What the images add to the gradient of the windows of the taps, 36 matrices (in, out).
template <typename scalar_t>
static void winograd_backward(const Conv3x3BackwardArgs& a, int64_t first, int64_t last, bool add,
                              float* grad_windows, float* scratch) {
  const TileGrid grid{a.height, a.width};
  const int64_t images = last - first, tiles = images * grid.of_image();
  const int64_t pixels = a.height * a.width;
  const Planes v(scratch, tiles, a.in), m(scratch + Planes::size(tiles, a.in), tiles, a.out);
  const Planes grad(grad_windows, a.in, a.out);
  planes_of_images<kWindow, -1>(static_cast<const scalar_t*>(a.x) + first * pixels * a.in, grid,
                                images, a.in, v, window_of_inputs);
  planes_of_images<kTile, 0>(static_cast<const scalar_t*>(a.grad_y) + first * pixels * a.out, grid,
                             images, a.out, m, window_of_outputs);
  for (int64_t f = 0; f < kPlanes; ++f)
    for (int64_t panel = 0; panel < m.stride; panel += kPanel)
      for (int64_t row = 0; row < a.in; row += kRowsTogether) {
        const float* from = v.data + f * v.plane + row;
        const float* b = m.data + f * m.plane + panel;
        float* to = grad.data + f * grad.plane + row * grad.stride + panel;
        add ? multiply_panel<true>(from, 1, v.stride, b, m.stride, tiles, to, grad.stride)
            : multiply_panel<false>(from, 1, v.stride, b, m.stride, tiles, to, grad.stride);
      }
}

// The gradients of the taps from those of their windows in all tables.
static void winograd_unpack(const float* tables, int64_t count, int64_t in, int64_t out,
                            int64_t begin, int64_t end, float* room, float* weight) {
  const Planes first(const_cast<float*>(tables), in, out);
  for (int64_t k = begin; k < end; ++k)
    for_vectors<float>(out, [&](int64_t c, int64_t lanes) {
      VecF sum[kPlanes], made[9];
      for (int64_t f = 0; f < kPlanes; ++f) {
        const float* at = first.data + f * first.plane + k * first.stride + c;
        sum[f] = load(at);
        for (int64_t table = 1; table < count; ++table)
          sum[f] += load(at + table * winograd_table_size(in, out));
      }
      both_axes<kWindow, 3>(sum, made, taps_of_window);
      for (int64_t t = 0; t < 9; ++t)
        set(room + (t * kLine + k - begin) * out + c, made[t], lanes, false);
    });
  put_taps(room, in, out, begin, end, weight);
}

template <typename scalar_t>
constexpr Conv3x3Forward kWinogradForward = {winograd_images_together, winograd_scratch_size,
                                             winograd_packed_size, winograd_pack,
                                             winograd_forward<scalar_t>};
template <typename scalar_t>
constexpr Conv3x3Backward kWinogradBackward = {
    winograd_images_together,    winograd_scratch_size, winograd_table_size,
    winograd_backward<scalar_t>, winograd_unpack,       sum_pixels<scalar_t>};
