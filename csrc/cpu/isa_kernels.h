// All kernels for one instruction set: isa_*.cpp choose it, define LTDD_ISA (a namespace) and
// LTDD_VECTOR_BYTES, and include this file once. Standard headers must come before the choice, so
// that nothing shared with other files is compiled for it.

namespace ltdd::LTDD_ISA {
namespace {

#include "vec.h"
// Vectors first, then passes that write, then moments of each layout.
#include "elementwise_kernels.h"
//
#include "rows_kernels.h"
//
#include "pixels_kernels.h"
// And the fused operator.
#include "bn_act_kernels.h"
// And what training adds to it.
#include "norm_act_kernels.h"
// And convolution, in three ways.
#include "panel_kernels.h"
//
#include "conv3x3_direct_kernels.h"
//
#include "conv3x3_narrow_kernels.h"
//
#include "conv3x3_kernels.h"
// And the state of classes.
#include "class_kernels.h"

template <typename scalar_t>
constexpr Kernels kKernels = {
    moments_rows<scalar_t>,
    moments_pixels<scalar_t>,
    moments_backward_rows<scalar_t>,
    moments_backward_pixels<scalar_t>,
    bn_act_rows<scalar_t>,
    bn_act_pixels<scalar_t>,
    bn_act_backward_rows<scalar_t>,
    bn_act_backward_pixels<scalar_t>,
    norm_sums_rows<scalar_t>,
    norm_sums_pixels<scalar_t>,
    norm_double_rows<scalar_t>,
    norm_double_pixels<scalar_t>,
    add_images,
};

template <typename scalar_t>
constexpr Conv3x3Kernels kConv3x3[] = {
    {kWinogradForward<scalar_t>, kWinogradBackward<scalar_t>},
    {kNarrowForward<scalar_t>, kWinogradBackward<scalar_t>},
    {kDirectForward<scalar_t>, kDirectBackward<scalar_t>},
};

}  // namespace

static inline const Conv3x3Kernels& choose_conv3x3(Storage storage, int64_t in, int64_t out) {
  const int which = in <= kFewChannels ? 2 : out <= kFewChannels ? 1 : 0;
  return storage == Storage::kBFloat16 ? kConv3x3<BFloat16>[which] : kConv3x3<float>[which];
}

static inline const Kernels& choose(Storage storage) {
  switch (storage) {
    case Storage::kDouble:
      return kKernels<double>;
    case Storage::kBFloat16:
      return kKernels<BFloat16>;
    case Storage::kHalf:
      return kKernels<Half>;
    default:
      return kKernels<float>;
  }
}

}  // namespace ltdd::LTDD_ISA
