// The module ltdd_ext._build: says what the extension was built with, and nothing else.
// The operators themselves live in libraries that do not depend on a Python or torch version.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

std::map<std::string, std::string> build_info() {
  return {
      {"torch", LTDD_TORCH_VERSION},
      {"torch_target", LTDD_TORCH_TARGET},
      {"cuda", LTDD_CUDA_VERSION},
      {"cuda_architectures", LTDD_CUDA_ARCHITECTURES},
      {"cuda_reason", LTDD_CUDA_REASON},
      {"compiler", compiler()},
      {"cxx_standard", std::to_string(__cplusplus)},
  };
}

}  // namespace

PYBIND11_MODULE(_build, m) {
  m.doc() = "What this build of ltdd_ext was made with.";
  m.def("build_info", &build_info,
        "Return torch, CUDA, architectures, compiler and ABI target of this build as strings.");
}
