// conv3x3: convolution with 3x3 taps and padding 1 of channels_last images in float32 or bfloat16.
//
//   y[n,o,i,j] = bias[o] + sum_{c,a,b} weight[o,c,a,b] x[n,c,i+a-1,j+b-1]
//
// The loops are in conv3x3_tile_kernels.h where the machine has tiles (AMX), else in
// conv3x3_kernels.h, Winograd's algorithm with a quarter of the multiplications, in
// conv3x3_direct_kernels.h for images of few channels and in conv3x3_narrow_kernels.h for outputs
// of few. Work is split into groups of whole images by shape alone; the gradient of the
// taps is summed in at most kTables tables of consecutive groups, then over them, so no bit depends
// on the number of threads.

#include <torch/csrc/stable/library.h>

#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace ltdd {
namespace {

constexpr int64_t kTaps = 9;
constexpr int64_t kTables = 8;

constexpr int64_t kShare = 4;  // groups and tables come in multiples: threads get as much each

struct Geometry {
  int64_t n, in, out, height, width;
};

// Images in groups of nearly the same size, small enough to be worked on together.
struct Groups {
  int64_t n, count;

  template <typename Run>
  Groups(const Run& run, const Geometry& g) : n(g.n) {
    const int64_t together = run.images_together(g.height, g.width);
    const int64_t fewest = (n + together - 1) / together;
    count = std::min(n, (fewest + kShare - 1) / kShare * kShare);
  }
  int64_t begin(int64_t group) const { return n * group / count; }
};

Storage storage_of_images(const char* op, const char* name, const Tensor& images) {
  const ScalarType dtype = images.scalar_type();
  if (images.dim() != 4 || (dtype != ScalarType::Float && dtype != ScalarType::BFloat16))
    refuse(op, name, " of shape (N, C, H, W) and dtype float32 or bfloat16, got ",
           shape_of(images));
  return storage_of(op, images);
}

Tensor channels_last(const Tensor& x) {
  if (is_pixels(x)) return x;
  return torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
}

Tensor empty_channels_last(const Tensor& like, std::initializer_list<int64_t> shape,
                           ScalarType dtype) {
  return torch::stable::empty({shape.begin(), shape.size()}, dtype, std::nullopt, like.device(),
                              std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
}

const float* floats(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

constexpr std::align_val_t kCacheLine{64};

struct Free {
  void operator()(float* from) const { ::operator delete[](from, kCacheLine); }
};

// No result depends on what lies there: lanes that nobody needs may be computed from it.
using Floats = std::unique_ptr<float[], Free>;

Floats uninitialised(int64_t size) {
  const auto bytes = static_cast<size_t>(size) * sizeof(float);
  return Floats(static_cast<float*>(::operator new[](bytes, kCacheLine)));
}

template <typename Run>
Floats scratch_for(const Run& run, const Geometry& g) {
  return uninitialised(run.scratch_size(g.height, g.width, g.in, g.out));
}

// Calls body(begin, end) for input channels by the cache line. Taps are transposed on their way to
// the products and back, and columns of many channels would fall into few sets of the cache.
template <typename Body>
void for_each_line(int64_t channels, const Body& body) {
  torch::stable::parallel_for(0, (channels + kLine - 1) / kLine, 1, [&](int64_t b, int64_t e) {
    for (int64_t line = b; line < e; ++line)
      body(line * kLine, std::min(channels, (line + 1) * kLine));
  });
}

Floats pack(const Conv3x3Forward& run, const Geometry& g, const Tensor& weight) {
  const auto taps = uninitialised(kTaps * g.in * g.out);  // [9, in, out]
  auto packed = uninitialised(run.packed_size(g.in, g.out));
  for_each_line(g.in, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < kTaps; ++t) {
      const float* tap = floats(weight) + t / 3 * weight.stride(2) + t % 3 * weight.stride(3);
      for (int64_t o = 0; o < g.out; ++o) {
        const float* from = tap + o * weight.stride(0);
        const int64_t stride = weight.stride(1);
        for (int64_t k = begin; k < end; ++k) taps[(t * g.in + k) * g.out + o] = from[k * stride];
      }
    }
    run.pack(taps.get(), g.in, g.out, begin, end, packed.get());
  });
  return packed;
}

Tensor conv3x3_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = "conv3x3";
  const Storage storage = storage_of_images(op, "x", x);
  if (weight.dim() != 4 || weight.scalar_type() != ScalarType::Float ||
      weight.size(1) != x.size(1) || weight.size(2) != 3 || weight.size(3) != 3)
    refuse(op, "weight of shape (O, ", x.size(1), ", 3, 3) and dtype float32, got ",
           shape_of(weight));
  check_vector(op, "bias", bias, weight.size(0));
  const Geometry g{x.size(0), x.size(1), weight.size(0), x.size(2), x.size(3)};
  const Tensor y = empty_channels_last(x, {g.n, g.out, g.height, g.width}, x.scalar_type());
  if (y.numel() == 0) return y;
  const Conv3x3Forward& run = conv3x3_kernels(storage, g.in, g.out).forward;
  const Tensor images = channels_last(x), offsets = contiguous_as(bias, ScalarType::Float);
  const auto packed = pack(run, g, weight);
  const Conv3x3Args args{
      images.const_data_ptr(), packed.get(),        floats(offsets), g.height, g.width, g.in, g.out,
      worth_streaming(y),      y.mutable_data_ptr()};
  const Groups groups(run, g);
  torch::stable::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = scratch_for(run, g);
    for (int64_t group = begin; group < end; ++group)
      run.run(args, groups.begin(group), groups.begin(group + 1), scratch.get());
  });
  return y;
}

std::tuple<Tensor, Tensor> conv3x3_backward_cpu(const Tensor& grad_y, const Tensor& x) {
  const char* op = "conv3x3_backward";
  const Storage storage = storage_of_images(op, "x", x);
  if (storage_of_images(op, "grad_y", grad_y) != storage)
    refuse(op, "grad_y and x of one dtype, got two");
  if (grad_y.size(0) != x.size(0) || grad_y.size(2) != x.size(2) || grad_y.size(3) != x.size(3))
    refuse(op, "grad_y to fit x of shape ", shape_of(x), ", got ", shape_of(grad_y));
  const Geometry g{x.size(0), x.size(1), grad_y.size(1), x.size(2), x.size(3)};
  Tensor grad_weight = empty_channels_last(x, {g.out, g.in, 3, 3}, ScalarType::Float);
  Tensor grad_bias = new_empty(x, {&g.out, 1}, ScalarType::Float);
  torch::stable::fill_(grad_weight, 0.0);
  torch::stable::fill_(grad_bias, 0.0);
  if (x.numel() == 0 || grad_y.numel() == 0) return {grad_weight, grad_bias};
  const Conv3x3Backward& run = conv3x3_kernels(storage, g.in, g.out).backward;
  const Tensor images = channels_last(x), grads = channels_last(grad_y);
  const Conv3x3BackwardArgs args{
      images.const_data_ptr(), grads.const_data_ptr(), g.height, g.width, g.in, g.out};
  const Groups groups(run, g);
  // A table costs a write and a read: no more of them than there is work to share.
  const int64_t tables = std::min(groups.count, groups.count < 3 * kTables ? kShare : kTables);
  const int64_t table_size = run.table_size(g.in, g.out);
  const auto sums_of_taps = uninitialised(tables * table_size);
  std::vector<double> bias_sums(static_cast<size_t>(tables * g.out));
  torch::stable::parallel_for(0, tables, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = scratch_for(run, g);
    for (int64_t table = begin; table < end; ++table) {
      const int64_t first = groups.count * table / tables;
      const int64_t last = groups.count * (table + 1) / tables;
      for (int64_t group = first; group < last; ++group)
        run.run(args, groups.begin(group), groups.begin(group + 1), group > first,
                sums_of_taps.get() + table * table_size, scratch.get());
      run.sum_pixels(args, groups.begin(first), groups.begin(last),
                     bias_sums.data() + table * g.out);
    }
  });
  auto* weight = static_cast<float*>(grad_weight.mutable_data_ptr());  // [out, 9, in]
  for_each_line(g.in, [&](int64_t begin, int64_t end) {
    const auto room = uninitialised(kTaps * kLine * g.out);
    run.unpack(sums_of_taps.get(), tables, g.in, g.out, begin, end, room.get(), weight);
  });
  auto* bias = static_cast<float*>(grad_bias.mutable_data_ptr());
  for (int64_t o = 0; o < g.out; ++o) {
    double sum = 0.0;
    for (int64_t table = 0; table < tables; ++table) sum += bias_sums[table * g.out + o];
    bias[o] = static_cast<float>(sum);
  }
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&ltdd::conv3x3_cpu));
  m.impl("conv3x3_backward", TORCH_BOX(&ltdd::conv3x3_backward_cpu));
}
