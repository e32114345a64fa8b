// Says what would be launched, without running it: "blocks threads" of each launch in a line for
// each line of the input, "operator N C H W type layout pool", e.g. "bn_act_moments 20 64 56 56
// bf16 NHWC 0". For the operator bn_act_passed_bytes it says how many these are.

#include <iostream>
#include <sstream>

#include "harness.h"

namespace {

using namespace harness;

// An address that all vectors like; nothing is read from it.
void* somewhere() { return reinterpret_cast<void*>(uintptr_t(1) << 20); }

bool launch_one(const std::string& line) {
  std::istringstream words(line);
  std::string op, type, layout;
  Activation shape{};
  bool pool = false;
  words >> op >> shape.images >> shape.channels >> shape.height >> shape.width >> type >> layout >>
      pool;
  shape.type = type == "fp32" ? Type::kFloat32 : Type::kBFloat16;
  shape.channels_last = layout == "NHWC";
  double* rows = static_cast<double*>(somewhere());
  void* x = somewhere();
  const ltdd::cuda::BnAct fused{x, x, nullptr, true, pool};
  const ltdd::cuda::NormAct norm{x, x, 1e-5, false, true, pool};
  if (op == "row_moments")
    ltdd::cuda::row_moments(shape, x, rows, rows, x, nullptr);
  else if (op == "row_moments_backward")
    ltdd::cuda::row_moments_backward(shape, rows, rows, x, rows, x, nullptr);
  else if (op == "bn_act_moments")
    ltdd::cuda::bn_act_moments(shape, fused, x, x, rows, rows, nullptr, x, nullptr);
  else if (op == "bn_act_passed_bytes")
    std::printf("%zu", ltdd::cuda::bn_act_passed_bytes(shape));
  else if (op == "bn_act_moments_backward")
    ltdd::cuda::bn_act_moments_backward(shape, fused, nullptr, x, nullptr, rows, rows, x, rows, x,
                                        nullptr, nullptr);
  else if (op == "bn_max_moments")
    ltdd::cuda::bn_max_moments(shape, fused, x, x, rows, rows, nullptr, x, nullptr);
  else if (op == "bn_max_moments_backward")
    ltdd::cuda::bn_max_moments_backward(shape, fused, static_cast<uint8_t*>(x), x, rows, rows, x,
                                        rows, x, nullptr);
  else if (op == "norm_act")
    ltdd::cuda::norm_act(shape, norm, x, x, rows, rows, x, nullptr);
  else if (op == "norm_act_backward")
    ltdd::cuda::norm_act_backward(shape, norm, x, x, rows, rows, x, x, x, x, nullptr);
  else
    return false;
  return true;
}

}  // namespace

int list_launches() {
  cuda_emulation::only_list = true;
  for (std::string line; std::getline(std::cin, line);) {
    if (!launch_one(line)) return 2;
    std::printf("\n");
  }
  return 0;
}
