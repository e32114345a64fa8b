// Chooses the kernels for this machine, once.

#include <cstdlib>
#include <string_view>

#include "kernels.h"

namespace ltdd {
namespace {

struct InstructionSet {
  const char* name;
  const Kernels& (*kernels)(Storage);
  const Conv3x3Kernels& (*conv3x3)(int64_t, int64_t);
};

InstructionSet choose() {
#if defined(__x86_64__)
  const char* asked = std::getenv("LTDD_CPU_ISA");
  const std::string_view limit = asked != nullptr ? asked : "avx512";
  __builtin_cpu_init();
  // The levels of the x86-64 psABI; a kernel may use any instruction of its level.
  const bool has_v3 = __builtin_cpu_supports("x86-64-v3");
  const bool has_v4 = has_v3 && __builtin_cpu_supports("x86-64-v4");
  if (has_v4 && limit == "avx512") return {"avx512", avx512_kernels, avx512_conv3x3_kernels};
  if (has_v3 && limit != "baseline") return {"avx2", avx2_kernels, avx2_conv3x3_kernels};
#endif
  return {"baseline", baseline_kernels, baseline_conv3x3_kernels};
}

const InstructionSet& chosen() {
  static const InstructionSet set = choose();
  return set;
}

}  // namespace

const Kernels& kernels(Storage storage) { return chosen().kernels(storage); }
const Conv3x3Kernels& conv3x3_kernels(int64_t in, int64_t out) { return chosen().conv3x3(in, out); }

}  // namespace ltdd

// Read by ltdd_ext.build_info(): "avx512", "avx2" or "baseline".
extern "C" [[gnu::visibility("default")]] const char* ltdd_cpu_instruction_set() {
  return ltdd::chosen().name;
}
