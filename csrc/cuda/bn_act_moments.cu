// bn_act_moments: frozen batch norm, residual, ReLU, 2x2 average pool and the row moments of x.
//
//   y = pool(act(k x + h + residual)),   mean, m2 of x as in row_moments
//
// k, h: one pair per channel, frozen. Layouts and parallelisation: rows.h, pixels.h; y comes from
// the registers that the moments come from. Traffic: reads x (and residual), writes y (and, for a
// backward pass behind a residual, a sixteenth of x of bits that say where the ReLU passed).
// Deterministic: no atomics, and the grid depends on the shape alone.

#include "bn_act.h"

namespace ltdd::cuda {
namespace {

template <typename scalar_t, Beside kBeside>
struct BnActEpilogue : ChannelScales<acc_type<scalar_t>> {
  using acc_t = acc_type<scalar_t>;
  static constexpr bool kResidual = kBeside != Beside::kNothing;
  static constexpr bool kPassed = kBeside == Beside::kPassed;
  static constexpr bool kWrites = true;
  static constexpr int kStreams = kResidual ? 2 : 1;

  const scalar_t* residual;  // like x
  scalar_t* y;
  uint8_t* passed;
  acc_t least;  // see activate

  template <typename Units>
  struct Operands {
    Optional<typename Units::template Raw<scalar_t>, kResidual> residual;
  };
  template <int kElements, int V>
  struct PixelOperands {
    Optional<Pack<scalar_t, V>, kResidual> residual[kElements];
  };

  template <typename Units>
  __device__ void load(const Units& units, int64_t start, int unit,
                       Operands<Units>& operands) const {
    if constexpr (kResidual) units.load_unit(residual + start, unit, operands.residual.raw);
  }

  // at(e): the coefficients of element e of the unit; start: where the outputs of its row start.
  template <typename Units, typename Coefficients>
  __device__ void write(const Units& units, int64_t start, int unit, const Coefficients& at,
                        const Operands<Units>& operands,
                        const acc_t (&values)[Units::kElements]) const {
    acc_t out[Units::kElements];
#pragma unroll
    for (int e = 0; e < Units::kElements; ++e)
      out[e] = activate(operands.residual.add_to(at(e)(values[e]), e), least);
    if constexpr (kPassed)
      passed[byte_of<scalar_t>(start) + static_cast<unsigned>(unit)] = bits_of(out);
    units.store_output(y + start, unit, out);
  }

  // A bit for each element that exceeds the bound, before it is applied or behind.
  template <int kCount>
  __device__ uint8_t bits_of(const acc_t (&values)[kCount]) const {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) bits |= values[i] <= least ? 0u : 1u << i;
    return static_cast<uint8_t>(bits);
  }

  // From here on, bytes of pixels count from element `start`, those of outputs from `output_start`.
  __device__ void start_at(int64_t start, int64_t output_start) {
    if constexpr (kResidual) residual += start;
    if constexpr (kPassed) passed += byte_of<scalar_t>(start);
    y += output_start;
  }

  template <int V, typename Operands>
  __device__ void load_pixel(int64_t offset, int e, Operands& operands) const {
    if constexpr (kResidual) operands.residual[e].raw = cuda::load<V>(bytes_on(residual, offset));
  }

  template <int V, int kElements>
  __device__ void write_pixel(int64_t offset, const ScalesHere<V, acc_t>& at,
                              const PixelOperands<kElements, V>& operands,
                              const acc_t (&values)[kElements][V]) const {
    acc_t out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto before = [&](int e) {
        return operands.residual[e].add_to(at.channel[v](values[e][v]), v);
      };
      if constexpr (kElements == 1) {
        out[v] = before(0);
      } else {
        acc_t sum = activate(before(0), least);
#pragma unroll
        for (int e = 1; e < kElements; ++e) sum += activate(before(e), least);
        out[v] = sum * (acc_t(1) / kElements);
      }
    }
    if constexpr (kElements == 1)
      store_activated<V>(bytes_on(y, offset), out, least);
    else
      store<V>(bytes_on(y, offset), out);
    if constexpr (kPassed) passed[byte_of<char>(offset)] = bits_of(out);
  }
};

}  // namespace

size_t bn_act_moments_scratch_bytes(const Activation& shape, bool residual, bool pool) {
  const int streams = residual ? BnActEpilogue<float, Beside::kResidual>::kStreams
                               : BnActEpilogue<float, Beside::kNothing>::kStreams;
  return pool ? scratch_bytes<PooledPixels>(shape, streams)
              : scratch_bytes<LinearPixels>(shape, streams);
}

size_t bn_act_passed_bytes(const Activation& shape) {
  if (shape.rows() == 0 || shape.size() == 0) return 0;
  size_t bytes = 0;
  for_type(shape.type, [&]<typename scalar_t>() {
    constexpr int V = kVector<scalar_t>;
    const int64_t elements = shape.rows() * shape.size();
    const int64_t run = shape.channels_last ? shape.channels : shape.size();
    // Of small planes all elements, not those of a plane: then none is left behind the last vector.
    const bool fits = run % V == 0 || (takes_flat<scalar_t>(shape, true) && elements % V == 0);
    if (fits && !std::is_same_v<scalar_t, double>) bytes = static_cast<size_t>(elements / V);
  });
  return bytes;
}

void bn_act_moments(const Activation& shape, const BnAct& fused, const void* x, void* y,
                    double* mean, double* m2, uint8_t* passed, void* scratch, Stream stream) {
  if (shape.rows() == 0 || shape.size() == 0) return;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  for_variant(shape.type, fused.residual, passed, [&]<typename scalar_t, Beside kBeside>() {
    using Epilogue = BnActEpilogue<scalar_t, kBeside>;
    using acc_t = acc_type<scalar_t>;
    const Epilogue epilogue{
        {static_cast<const acc_t*>(fused.k), static_cast<const acc_t*>(fused.h)},
        static_cast<const scalar_t*>(fused.residual),
        static_cast<scalar_t*>(y),
        passed,
        least_of<acc_t>(fused.relu)};
    const scalar_t* in = static_cast<const scalar_t*>(x);
    const bool aligned = all_aligned({x, y, fused.residual});
    if (!fused.pool && takes_flat<scalar_t>(shape, aligned))
      return launch_flat(shape, in, mean, m2, epilogue, on);
    const auto on_rows = [&](const auto& units) {
      launch_rows(shape, units, in, mean, m2, epilogue, on);
    };
    const auto on_pixels = [&]<int V>(const auto& pixels) {
      launch_pixels<V>(shape, pixels, in, mean, m2, scratch, epilogue, on);
    };
    if constexpr (kBeside == Beside::kPassed)
      for_unpooled<kVector<scalar_t>>(shape, on_rows, on_pixels);
    else
      for_units<scalar_t, kBeside == Beside::kResidual>(shape, fused.pool, aligned, on_rows,
                                                        on_pixels);
  });
  check_launch("bn_act_moments");
}

}  // namespace ltdd::cuda
