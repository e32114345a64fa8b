// Tensors of more than 2^31 elements: only the last block runs, over memory that is reserved and
// never filled, so an offset that does not fit in 32 bits would miss the data.

#include <sys/mman.h>

#include "harness.h"
#include "pixels.h"
#include "rows.h"

namespace {

using namespace harness;
using namespace ltdd::cuda;

// Address space of zeros; pages exist once they are written.
class Reserved {
 public:
  explicit Reserved(size_t bytes)
      : bytes_(bytes),
        start_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    expect(start_ != MAP_FAILED, "address space for a large tensor");
  }
  ~Reserved() { munmap(start_, bytes_); }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  template <typename T>
  T* as() {
    return static_cast<T*>(start_);
  }

 private:
  size_t bytes_;
  void* start_;
};

struct Nothing {
  static constexpr bool kWrites = false;
  template <typename>
  struct Operands {};
  template <int, int>
  struct PixelOperands {};
  struct Coefficients {
    int channel;
  };
  Coefficients coefficients(int64_t channel) const { return {static_cast<int>(channel)}; }
  template <typename Units, typename Into>
  void load(const Units&, int64_t, int, Into&) const {}
  void start_at(int64_t, int64_t) {}
  template <int>
  Coefficients channel_coefficients(int64_t channel) const {
    return {static_cast<int>(channel)};
  }
  template <int, typename Into>
  void load_pixel(int64_t, int, Into&) const {}
};

constexpr int64_t kLast[] = {3, 1, 4, 1, 5, 9, 2, 6};  // the values of the last row

void check_rows() {
  constexpr int64_t kSize = 8, kRows = (int64_t(1) << 28) + 3;
  Reserved x(kRows * kSize * sizeof(__nv_bfloat16)), mean(kRows * 8), m2(kRows * 8);
  for (int i = 0; i < 8; ++i)
    x.as<__nv_bfloat16>()[(kRows - 1) * kSize + i] = narrow<__nv_bfloat16>(float(kLast[i]));
  const RowGrid grid{kRows, 7, 1, 1};
  const LinearUnits<8> units(Plane{1, kSize});
  const dim3 blocks(static_cast<unsigned>((kRows + 63) / 64)), threads(128);
  cuda_emulation::run_block_at(blocks, threads, dim3(blocks.x - 1, 0, 0), [&] {
    row_moments_kernel<__nv_bfloat16, LinearUnits<8>, 2, 2, Nothing>(
        x.as<__nv_bfloat16>(), mean.as<double>(), m2.as<double>(), grid, kSize, units, {});
  });
  expect_close("mean of the last of many rows", 0, mean.as<double>()[kRows - 1], 31.0 / 8, 1e-6);
  expect_close("m2 of the last of many rows", 0, m2.as<double>()[kRows - 1], 52.875, 1e-5);
}

void check_pixels() {
  constexpr int64_t kImages = (int64_t(1) << 26) + 1;
  constexpr int kChannels = 8, kSize = 8;
  Reserved x(kImages * kChannels * kSize * sizeof(__half)), mean(kImages * kChannels * 8),
      m2(kImages * kChannels * 8);
  for (int s = 0; s < kSize; ++s)
    x.as<__half>()[((kImages - 1) * kSize + s) * kChannels + 7] = narrow<__half>(float(kLast[s]));
  const PixelGrid grid{kImages, kChannels, 1, kSize, kSize * kChannels, kSize * kChannels};
  const LinearPixels pixels(Plane{1, kSize});
  const dim3 blocks(static_cast<unsigned>(kImages)), threads(1, 8);
  cuda_emulation::run_block_at(blocks, threads, dim3(blocks.x - 1, 0, 0), [&] {
    pixel_moments_kernel<__half, 8, LinearPixels, 4, Nothing>(
        x.as<__half>(), mean.as<double>(), m2.as<double>(), {}, grid, pixels, {});
  });
  const int64_t row = kImages * kChannels - 1;
  expect_close("mean of the last of many pixels", 0, mean.as<double>()[row], 31.0 / 8, 1e-6);
  expect_close("m2 of the last of many pixels", 0, m2.as<double>()[row], 52.875, 1e-5);
}

void check_channel() {
  for (const int64_t row : {int64_t(5), int64_t(INT32_MAX), (int64_t(1) << 33) + 5}) {
    const RowGrid grid{row + 1, 1000, 1, 1};
    expect(grid.channel_of(row) == row % 1000, "channel of a row beyond 2^31");
  }
}

}  // namespace

void test_large_offsets() {
  check_rows();
  check_pixels();
  check_channel();
}
