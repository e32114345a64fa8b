#pragma once

// The launchers, as the bindings see them: raw pointers, sizes and a stream, neither torch nor CUDA
// types. Every launcher returns at once for empty work, checks its launches, never waits, never
// allocates; pointers are device pointers of the current device.

#include <cstddef>
#include <cstdint>

namespace ltdd::cuda {

using Stream = void*;  // a cudaStream_t

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

// An activation of N * C planes, H x W each: NCHW, or NHWC with channels_last. A plain run of S
// numbers is a plane of 1 x S.
struct Activation {
  Type type;
  int64_t images, channels;
  int height, width;
  bool channels_last;

  int64_t size() const { return int64_t(height) * width; }
  int64_t rows() const { return images * channels; }
};

// Bytes of scratch that an operator on this activation needs; 0 in most cases.
size_t row_moments_scratch_bytes(const Activation& shape);
size_t bn_act_moments_scratch_bytes(const Activation& shape, bool residual, bool pool);

// mean, m2: (N, C).
void row_moments(const Activation& shape, const void* x, double* mean, double* m2, void* scratch,
                 Stream stream);

// dx = grad_mean / S + 2 grad_m2 (x - mean), stored like x.
void row_moments_backward(const Activation& shape, const double* grad_mean, const double* grad_m2,
                          const void* x, const double* mean, void* dx, Stream stream);

// y = pool(act(k x + h + residual)) and the moments of x. k, h: [C], float32 (float64 for float64
// x); residual (null: none) and y are stored like x; with pool y has planes of H/2 x W/2.
//
// passed (null: not wanted): where the ReLU behind a residual passed, for the backward pass. With
// it there is no pool, bn_act_passed_bytes is not 0, and all activations begin at multiples of 16.
struct BnAct {
  const void *k, *h, *residual;
  bool relu, pool;
};
void bn_act_moments(const Activation& shape, const BnAct& fused, const void* x, void* y,
                    double* mean, double* m2, uint8_t* passed, void* scratch, Stream stream);

// Bytes of these bits: a byte for each vector of x, or 0 where none fits.
size_t bn_act_passed_bytes(const Activation& shape);

// dx, and with a residual its gradient; k and h are frozen. passed (null: none) is read in place of
// the residual. grad_shortcut (null: none; never with pool) is the gradient of a second reader of
// y.
void bn_act_moments_backward(const Activation& shape, const BnAct& fused, const uint8_t* passed,
                             const void* grad_y, const void* grad_shortcut, const double* grad_mean,
                             const double* grad_m2, const void* x, const double* mean, void* dx,
                             void* dresidual, Stream stream);

// The same with a ReLU and the 3x3 max pool of stride 2 and padding 1 in place of fused.pool, where
// takes_max_pool says so and all activations begin at multiples of 16: y has planes of H/2 x W/2,
// rounded up. position (null: not wanted): for each element of y where its window has it.
bool takes_max_pool(const Activation& shape);
size_t bn_max_moments_scratch_bytes(const Activation& shape);
void bn_max_moments(const Activation& shape, const BnAct& fused, const void* x, void* y,
                    double* mean, double* m2, uint8_t* position, void* scratch, Stream stream);
void bn_max_moments_backward(const Activation& shape, const BnAct& fused, const uint8_t* position,
                             const void* grad_y, const double* grad_mean, const double* grad_m2,
                             const void* x, const double* mean, void* dx, Stream stream);

// y = pool(act(norm(x))) with the statistics of x itself, and its moments. weight, bias: [C], in
// the type that k and h above have; so are their gradients. The backward pass gets x, mean and m2.
struct NormAct {
  const void *weight, *bias;
  double eps;
  bool per_image, relu, pool;
};
size_t norm_act_scratch_bytes(const Activation& shape, const NormAct& norm);
void norm_act(const Activation& shape, const NormAct& norm, const void* x, void* y, double* mean,
              double* m2, void* scratch, Stream stream);
size_t norm_act_backward_scratch_bytes(const Activation& shape, const NormAct& norm);
void norm_act_backward(const Activation& shape, const NormAct& norm, const void* grad_y,
                       const void* x, const double* mean, const double* m2, void* dx,
                       void* grad_weight, void* grad_bias, void* scratch, Stream stream);

// Statistics of every class in a batch of row moments, (K, C) each; NaN where a class has no image,
// and everywhere if a label lies out of [0, K).
void class_moments_batch(const double* mean, const double* m2, int64_t spatial_size,
                         const int64_t* labels, int64_t images, int64_t classes, int64_t channels,
                         double* to_mean, double* within, double* between, double* total,
                         Stream stream);

// State of K classes, C channels, as in csrc/common/moments.h.
struct ClassState {
  int64_t* count;                 // [K]
  double *mu, *within, *between;  // [K, C]
  int64_t classes, channels;
};

// mean, m2: (N, C) of row_type, float32 or float64. Labels out of [0, K) are skipped.
void class_moments_update(const ClassState& state, Type row_type, const void* mean, const void* m2,
                          int64_t spatial_size, const int64_t* labels, int64_t images,
                          Stream stream);
void class_moments_merge(const ClassState& state, const ClassState& other, Stream stream);
void class_moments_finish(const ClassState& state, double* mean, double* within, double* between,
                          double* total, Stream stream);

// One layer of the alignment objective. Class targets are null where class_weight is 0.
struct AlignLayer {
  const void *mean, *m2;                 // (N, C) of the row type
  const void *global_mean, *global_var;  // (C) of the target type
  const void *class_mean, *class_var;    // (K, C) of the target type
  void *grad_mean, *grad_m2;             // (N, C) of the row type
  int64_t channels;
  double size, weight;
  bool double_targets;
};

size_t align_loss_scratch_bytes(const AlignLayer* layers, int count, int64_t images,
                                int64_t classes, double class_weight);

// labels: [N], read if class_weight is not 0; one out of [0, K) belongs to no class and makes the
// loss NaN. loss: one number of the row type.
void align_loss(const AlignLayer* layers, int count, Type row_type, const int64_t* labels,
                int64_t images, int64_t classes, double class_weight, void* loss, void* scratch,
                Stream stream);

}  // namespace ltdd::cuda
