#pragma once

// The inner loops of the CPU operators, one set per storage type, compiled once per instruction set
// (isa_baseline.cpp, isa_avx2.cpp, isa_avx512.cpp) and chosen at run time. No torch header here.
//
// acc_t is double for double storage and float for everything else. Pointers are void because the
// set is chosen by value; each function casts once.

#include <cstdint>

namespace ltdd {

enum class Storage { kFloat, kDouble, kBFloat16, kHalf };

// A block of consecutive rows (NCHW) or one sample (NHWC) of row_moments.
struct MomentsArgs {
  const void* x;
  int64_t n, c, s;
  double *mean, *m2;  // [N, C]
};

struct MomentsBackwardArgs {
  const double *grad_mean, *grad_m2, *mean;  // [N, C]
  const void* x;
  int64_t n, c, s;
  void* dx;
  bool stream;  // write dx past the caches
};

// pool: y = avgpool2x2(act(k x + h + residual)), else y = act(k x + h + residual).
struct BnActArgs {
  const void* x;
  const void* residual;  // or null
  const void *k, *h;     // acc_t [C], or [N, C] where every image has its own
  int64_t n, c, height, width;
  bool relu, pool, stream, own_scale;
  void* y;
  double *mean, *m2;  // [N, C], or null: x is not measured

  int64_t s() const { return height * width; }
  int64_t scale_of(int64_t row) const { return own_scale ? row : row % c; }
};

struct BnActBackwardArgs {
  const double *grad_mean, *grad_m2, *mean;  // [N, C]
  const void *grad_y, *x;
  const void* residual;  // or null
  const void *k, *h;     // acc_t [C], or [N, C] where every image has its own
  int64_t n, c, height, width;
  bool relu, pool, stream, own_scale;
  void* dx;
  void* dresidual;  // or null

  int64_t s() const { return height * width; }
  int64_t scale_of(int64_t row) const { return own_scale ? row : row % c; }
};

// What a trained norm needs of the gradient g that reaches it: sum g and sum g (x - mean) of a row.
// And what the gradient of its gradient needs of the gradient a of dx.
struct NormSumsArgs {
  BnActBackwardArgs pass;  // without residual; of its outputs nothing is written
  double *sum_g, *sum_gx;  // [N, C]
  const void* gg_x;        // a, or null: then the three below are not written
  double *sum_a, *sum_ax, *sum_ag;
};

// The gradient of a trained norm's gradient, as parts of a, g, x - mean and 1:
// dx = from_a a + from_g g + grad_mean / S + 2 grad_m2 (x - mean), and
// gg_y = pool'(mask(k x + h) (k a + y_grad_mean / S + 2 y_grad_m2 (x - mean))).
struct NormDoubleArgs {
  BnActBackwardArgs pass;                                   // without residual
  const void* gg_x;                                         // a
  const double *from_a, *from_g, *y_grad_mean, *y_grad_m2;  // [N, C]
  void* gg_y;
};

// Images of one batch for the statistics of their classes: running sums, or, with a total, those of
// the batch alone, finished.
struct AddImagesArgs {
  const double *mean, *m2;      // [N, C]
  const int64_t* image;         // [N], class by class, those of a class in the order of the batch
  const int64_t* first;         // [K + 1], where in it a class begins
  const double* inverse_count;  // [N], 1 / images of the class once this one is in
  int64_t c;
  double inverse_size;            // 1 / S
  double *mu, *within, *between;  // [K, C]
  double* total;                  // [K, C], or null
};

// A 3x3 convolution with padding 1 of NHWC images; `packed` is what `pack` made of the taps.
struct Conv3x3Args {
  const void* x;
  const float *packed, *bias;
  int64_t height, width, in, out;
  bool stream;
  void* y;
};

struct Conv3x3BackwardArgs {
  const void *x, *grad_y;
  int64_t height, width, in, out;
};

// "rows" functions work on rows [begin, end) of an NCHW tensor, row = sample * C + channel;
// "pixels" functions on channels [begin, end) of one sample of an NHWC tensor.
struct Kernels {
  void (*moments_rows)(const MomentsArgs&, int64_t begin, int64_t end);
  void (*moments_pixels)(const MomentsArgs&, int64_t sample, int64_t begin, int64_t end);
  void (*moments_backward_rows)(const MomentsBackwardArgs&, int64_t begin, int64_t end);
  void (*moments_backward_pixels)(const MomentsBackwardArgs&, int64_t sample, int64_t begin,
                                  int64_t end);
  void (*bn_act_rows)(const BnActArgs&, int64_t begin, int64_t end);
  void (*bn_act_pixels)(const BnActArgs&, int64_t sample, int64_t begin, int64_t end);
  void (*bn_act_backward_rows)(const BnActBackwardArgs&, int64_t begin, int64_t end);
  void (*bn_act_backward_pixels)(const BnActBackwardArgs&, int64_t sample, int64_t begin,
                                 int64_t end);
  void (*norm_sums_rows)(const NormSumsArgs&, int64_t begin, int64_t end);
  void (*norm_sums_pixels)(const NormSumsArgs&, int64_t sample, int64_t begin, int64_t end);
  void (*norm_double_rows)(const NormDoubleArgs&, int64_t begin, int64_t end);
  void (*norm_double_pixels)(const NormDoubleArgs&, int64_t sample, int64_t begin, int64_t end);
  // Channels [begin, end) of class k; of every set the same.
  void (*add_images)(const AddImagesArgs&, int64_t k, int64_t begin, int64_t end);
};

constexpr int64_t kLine = 16;  // input channels that are packed together, a cache line of floats

// Convolution of images in float or bfloat16, with taps in float. A task works on images_together
// images in scratch of scratch_size floats. Taps are [9, in, out]; `pack` rearranges those of input
// channels [begin, end), a line or what is left. Scratch, packed taps and tables are aligned to
// cache lines.
struct Conv3x3Forward {
  int64_t (*images_together)(int64_t height, int64_t width);
  int64_t (*scratch_size)(int64_t height, int64_t width, int64_t in, int64_t out);
  int64_t (*packed_size)(int64_t in, int64_t out);
  void (*pack)(const float* taps, int64_t in, int64_t out, int64_t begin, int64_t end,
               float* packed);
  void (*run)(const Conv3x3Args&, int64_t first, int64_t last, float* scratch);
};

// `run` writes what images contribute to the gradient of the taps into a table, or adds it;
// `unpack` sums `count` consecutive tables for input channels [begin, end) into weight [out, 9,
// in], with room for [9, kLine, out]. `sum_pixels` adds up the gradient of the bias.
struct Conv3x3Backward {
  int64_t (*images_together)(int64_t height, int64_t width);
  int64_t (*scratch_size)(int64_t height, int64_t width, int64_t in, int64_t out);
  int64_t (*table_size)(int64_t in, int64_t out);
  void (*run)(const Conv3x3BackwardArgs&, int64_t first, int64_t last, bool add, float* table,
              float* scratch);
  void (*unpack)(const float* tables, int64_t count, int64_t in, int64_t out, int64_t begin,
                 int64_t end, float* room, float* weight);
  void (*sum_pixels)(const Conv3x3BackwardArgs&, int64_t first, int64_t last, double* sums);
};

struct Conv3x3Kernels {
  Conv3x3Forward forward;
  Conv3x3Backward backward;
};

constexpr int64_t kFewChannels = 8;  // up to here the transforms cost more than they save

// The sets for this machine. LTDD_CPU_ISA=baseline|avx2|avx512 asks for a lower one, amx for tiles
// in float32 too.
const Kernels& kernels(Storage storage);
const Conv3x3Kernels& conv3x3_kernels(Storage storage, int64_t in, int64_t out);

// Whether this machine and its system have all of a level of the x86-64 psABI: a kernel may use any
// instruction of its level.
bool has_x86_64_v3();
bool has_x86_64_v4();
// Whether they have, beyond that, tiles for products of bfloat16; asks the system for their use.
bool has_amx();

// Whether this processor fetches by itself what is read in the order of memory, and would lose by
// being asked to.
extern const bool fetches_ahead;

const Kernels& baseline_kernels(Storage storage);
const Conv3x3Kernels& baseline_conv3x3_kernels(Storage storage, int64_t in, int64_t out);
const Kernels& avx2_kernels(Storage storage);
const Conv3x3Kernels& avx2_conv3x3_kernels(Storage storage, int64_t in, int64_t out);
const Kernels& avx512_kernels(Storage storage);
const Conv3x3Kernels& avx512_conv3x3_kernels(Storage storage, int64_t in, int64_t out);
const Conv3x3Kernels& amx_conv3x3_kernels(Storage storage, int64_t in, int64_t out);

}  // namespace ltdd
