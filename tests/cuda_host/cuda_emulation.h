#pragma once

// Enough of CUDA to run the kernels of csrc/cuda on a host, from the very source that nvcc
// compiles.
//
// One fiber (ucontext) per CUDA thread, blocks one after another, a fiber runs until it meets a
// barrier or a warp function. Everything therefore happens in one known order, and `thread_order`
// turns that order round: a kernel that needs a barrier it does not have gives another result.
// What hardware leaves undefined stops the program with one sentence: barriers or warp functions
// reached by some threads only, or from different places, and launches that no GPU would accept.
// Shared arrays are static variables, so the address sanitizer guards their ends.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };

namespace cuda_emulation {

enum class Order { kForward, kReversed };
inline Order thread_order = Order::kForward;
inline cudaError_t last_error = cudaSuccess;
inline bool only_list = false;  // print what is launched and do not run it
inline constexpr unsigned kLanes = 32;
inline constexpr size_t kStackBytes = 256 * 1024;

[[noreturn]] inline void fail(const char* what, const std::source_location& where) {
  std::fprintf(stderr, "cuda_emulation: %s at %s:%u (block %u,%u thread %u,%u)\n", what,
               where.file_name(), static_cast<unsigned>(where.line()), blockIdx.x, blockIdx.y,
               threadIdx.x, threadIdx.y);
  std::_Exit(86);
}

// A place where a set of threads waits for one another: a whole block or one warp.
struct Meeting {
  unsigned members = 0, arrived = 0, left = 0;
  uint64_t generation = 0;
  std::source_location where;
};

struct Warp {
  Meeting meeting;
  uint64_t values[2][kLanes];  // by parity: a lane may be one meeting ahead of a slow reader
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 index;
  unsigned number = 0;
  bool done = false;
  const Meeting* waits_for = nullptr;
  uint64_t generation = 0;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Warp> warps;
inline Meeting block_meeting;
inline Fiber* running = nullptr;
inline ucontext_t scheduler;
inline const std::function<void()>* kernel_body = nullptr;

inline void leave(Meeting& meeting) {
  if (meeting.arrived > 0) fail("a thread ends while others wait for it, reached", meeting.where);
  ++meeting.left;
}

inline void fiber_main() {
  (*kernel_body)();
  running->done = true;
  leave(block_meeting);
  leave(warps[running->number / kLanes].meeting);
  swapcontext(&running->context, &scheduler);
}

inline void wait_at(Meeting& meeting, const std::source_location& where) {
  if (meeting.left > 0) fail("a thread waits for others that have ended", where);
  if (meeting.arrived > 0 && (meeting.where.line() != where.line() ||
                              std::strcmp(meeting.where.file_name(), where.file_name()) != 0))
    fail("threads wait at different places", where);
  meeting.where = where;
  const uint64_t generation = meeting.generation;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  running->waits_for = &meeting;
  running->generation = generation;
  swapcontext(&running->context, &scheduler);
}

// Every lane gives a value and sees those of all lanes; returns the values of this meeting.
inline const uint64_t* exchange(unsigned mask, uint64_t value, const std::source_location& where) {
  if (mask != 0xffffffffu) fail("a warp function without all lanes", where);
  Warp& warp = warps[running->number / kLanes];
  uint64_t* values = warp.values[warp.meeting.generation % 2];
  values[running->number % kLanes] = value;
  wait_at(warp.meeting, where);
  return values;
}

inline bool can_run(const Fiber& fiber) {
  return !fiber.done &&
         (fiber.waits_for == nullptr || fiber.waits_for->generation != fiber.generation);
}

inline void run_block(unsigned threads) {
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  warps.assign((threads + kLanes - 1) / kLanes, Warp{});
  for (unsigned w = 0; w < warps.size(); ++w)
    warps[w].meeting.members = std::min(kLanes, threads - w * kLanes);
  block_meeting = Meeting{};
  block_meeting.members = threads;
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = *fibers[t];
    fiber.number = t;
    fiber.index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
    fiber.done = false;
    fiber.waits_for = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  unsigned done = 0;
  while (done < threads) {
    bool progress = false;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers[thread_order == Order::kForward ? i : threads - 1 - i];
      if (!can_run(fiber)) continue;
      progress = true;
      fiber.waits_for = nullptr;
      running = &fiber;
      threadIdx = fiber.index;
      swapcontext(&scheduler, &fiber.context);
      if (fiber.done) ++done;
    }
    if (!progress) fail("threads wait for one another in vain", block_meeting.where);
  }
}

inline bool accepted(dim3 grid, dim3 block) {
  return grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= INT32_MAX && grid.y <= 65535 &&
         grid.z <= 65535 && block.x >= 1 && block.y >= 1 && block.z >= 1 &&
         block.x * block.y * block.z <= 1024;
}

inline void run_block_at(dim3 grid, dim3 block, dim3 at, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = block;
  blockIdx = at;
  kernel_body = &body;
  run_block(block.x * block.y * block.z);
}

inline void run_grid(dim3 grid, dim3 block, const std::function<void()>& body) {
  if (!accepted(grid, block)) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (only_list) {
    std::printf("%llu %u ", static_cast<unsigned long long>(blocks), block.x * block.y * block.z);
    return;
  }
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = thread_order == Order::kForward ? i : blocks - 1 - i;
    const dim3 at(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y));
    run_block_at(grid, block, at, body);
  }
}

}  // namespace cuda_emulation

inline cudaError_t cudaGetLastError() {
  return std::exchange(cuda_emulation::last_error, cudaSuccess);
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  cuda_emulation::wait_at(cuda_emulation::block_meeting, where);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask,
                  std::source_location where = std::source_location::current()) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* values = cuda_emulation::exchange(mask, bits, where);
  const unsigned lane = cuda_emulation::running->number % cuda_emulation::kLanes;
  std::memcpy(&value, &values[lane ^ static_cast<unsigned>(lane_mask)], sizeof(T));
  return value;
}

inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              std::source_location where = std::source_location::current()) {
  const uint64_t* values = cuda_emulation::exchange(mask, predicate ? 1 : 0, where);
  const cuda_emulation::Warp& warp =
      cuda_emulation::warps[cuda_emulation::running->number / cuda_emulation::kLanes];
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < warp.meeting.members; ++lane)
    ballot |= values[lane] != 0 ? 1u << lane : 0u;
  return ballot;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The 16-bit types, converted as the hardware does: exactly, and back to nearest even.
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (std::isnan(value)) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

struct __half {
  uint16_t bits;
};

struct __half2 {
  __half x, y;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31;
  const int fraction = value.bits & 1023;
  float size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
               : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return (value.bits & 0x8000) != 0 ? -size : size;
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);  // 2^(exponent - 1) <= size < 2^exponent
  const int step = size < 0x1p-14f ? -24 : exponent - 11;
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, -step)));
  // Subnormals and the first normal binade share a step; a carry moves on to the next binade.
  return {static_cast<uint16_t>(sign | (steps + (step + 24) * 1024))};
}

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}

namespace ltdd::cuda {

// kernel<<<grid, block, shared_bytes, stream>>>(args...)
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t, cudaStream_t,
            const Args&... args) {
  cuda_emulation::run_grid(grid, block,
                           [&] { kernel(static_cast<std::decay_t<Params>>(args)...); });
}

}  // namespace ltdd::cuda
