// Chooses the kernels for this machine, once.

#include <cstdlib>
#include <string_view>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace ltdd {

#if defined(__x86_64__)
// Asked one by one: not every compiler knows the levels by name, and of some instructions none can
// tell but cpuid. What widens registers is asked through the compiler, which asks the system too.
bool has_x86_64_v3() {
  __builtin_cpu_init();
  unsigned a, b, c = 0, extended_c = 0, d;
  __get_cpuid(1, &a, &b, &c, &d);
  __get_cpuid(0x80000001, &a, &b, &extended_c, &d);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && (c & bit_F16C) != 0 &&
         (c & bit_MOVBE) != 0 && (extended_c & bit_LZCNT) != 0;
}

bool has_x86_64_v4() {
  return has_x86_64_v3() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// The registers of tiles are so large that Linux gives them only to processes that ask for them.
bool has_amx() {
#if defined(__linux__)
  constexpr long kAskForPermission = 0x1023, kTileData = 18;  // of arch_prctl
  constexpr unsigned kProducts = 1u << 22, kTiles = 1u << 24;
  unsigned a, b, c, d = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  return has_x86_64_v4() && __builtin_cpu_supports("avx512bf16") && (d & kProducts) != 0 &&
         (d & kTiles) != 0 && syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(__x86_64__)
const bool fetches_ahead = (__builtin_cpu_init(), __builtin_cpu_is("amd") != 0);
#else
const bool fetches_ahead = false;
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Kernels& (*kernels)(Storage);
  const Conv3x3Kernels& (*conv3x3)(Storage, int64_t, int64_t);
};

#if defined(__x86_64__)
// Of float32, tiles take halves of bfloat16: faster, and less exact than whoever says float32
// expects, so they have to be asked for.
const Conv3x3Kernels& tiles_for_bfloat16(Storage storage, int64_t in, int64_t out) {
  return storage == Storage::kBFloat16 ? amx_conv3x3_kernels(storage, in, out)
                                       : avx512_conv3x3_kernels(storage, in, out);
}
#endif

InstructionSet choose() {
#if defined(__x86_64__)
  const char* variable = std::getenv("LTDD_CPU_ISA");
  const std::string_view asked = variable != nullptr ? variable : "";
  if (asked == "amx" && has_amx()) return {"amx", avx512_kernels, amx_conv3x3_kernels};
  if (asked.empty() && has_amx()) return {"amx", avx512_kernels, tiles_for_bfloat16};
  if (asked != "avx2" && asked != "baseline" && has_x86_64_v4())
    return {"avx512", avx512_kernels, avx512_conv3x3_kernels};
  if (asked != "baseline" && has_x86_64_v3()) return {"avx2", avx2_kernels, avx2_conv3x3_kernels};
#endif
  return {"baseline", baseline_kernels, baseline_conv3x3_kernels};
}

const InstructionSet& chosen() {
  static const InstructionSet set = choose();
  return set;
}

}  // namespace

const Kernels& kernels(Storage storage) { return chosen().kernels(storage); }
const Conv3x3Kernels& conv3x3_kernels(Storage storage, int64_t in, int64_t out) {
  return chosen().conv3x3(storage, in, out);
}

}  // namespace ltdd

// Read by ltdd_ext.build_info(): "amx", "avx512", "avx2" or "baseline".
extern "C" [[gnu::visibility("default")]] const char* ltdd_cpu_instruction_set() {
  return ltdd::chosen().name;
}
