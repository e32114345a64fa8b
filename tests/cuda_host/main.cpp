// Runs the emulated tests (all, or the suites named) with the threads in order and
// again in reverse; the outputs of both runs must agree bit for bit. Exit status 0 when all is
// well, 1 for a wrong number; the emulation itself ends the program with 86 where a GPU would do
// something undefined. `launches` lists what would be launched instead (launches.cpp).

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "harness.h"

namespace {

std::vector<uint64_t> digests;
size_t checks = 0, failures = 0;
constexpr size_t kMostReports = 20;

}  // namespace

namespace harness {

double number(uint64_t stream, uint64_t index) {
  uint64_t z = (stream * 0x9e3779b97f4a7c15u) ^ (index + 1) * 0xd1342543de82ef95u;
  z = (z ^ z >> 32) * 0xd6e8feb86659fd93u;
  z = (z ^ z >> 32) * 0xd6e8feb86659fd93u;
  z ^= z >> 32;
  return static_cast<double>(z >> 11) * 0x1p-52 - 1.0;
}

void expect(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  if (++failures <= kMostReports) std::fprintf(stderr, "wrong: %s\n", what.c_str());
}

void expect_close(const std::string& what, size_t index, double got, double expected,
                  double tolerance) {
  const bool same = (std::isnan(got) && std::isnan(expected)) || got == expected ||
                    std::fabs(got - expected) <= tolerance;
  ++checks;
  if (same) return;
  if (++failures <= kMostReports)
    std::fprintf(stderr, "wrong: %s [%zu]: got %.9g, expected %.9g within %.3g\n", what.c_str(),
                 index, got, expected, tolerance);
}

void record(const void* data, size_t bytes) {
  uint64_t digest = 0xcbf29ce484222325u;
  for (size_t i = 0; i < bytes; ++i)
    digest = (digest ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  digests.push_back(digest);
}

std::string Shape::text() const {
  return std::to_string(n) + "x" + std::to_string(c) + "x" + std::to_string(h) + "x" +
         std::to_string(w) + (channels_last ? " NHWC" : " NCHW");
}

}  // namespace harness

int main(int count, char** names) {
  if (count == 2 && std::string(names[1]) == "launches") return list_launches();
  struct Suite {
    const char* name;
    void (*run)();
  };
  const Suite suites[] = {{"number_types", test_number_types},
                          {"row_moments", test_row_moments},
                          {"bn_act_moments", test_bn_act_moments},
                          {"bn_max_moments", test_bn_max_moments},
                          {"norm_act", test_norm_act},
                          {"class_moments", test_class_moments},
                          {"align_loss", test_align_loss},
                          {"large_offsets", test_large_offsets}};
  std::vector<uint64_t> in_order;
  for (const auto order : {cuda_emulation::Order::kForward, cuda_emulation::Order::kReversed}) {
    cuda_emulation::thread_order = order;
    in_order = std::exchange(digests, {});
    for (const Suite& suite : suites)
      if (count == 1 ||
          std::find(names + 1, names + count, std::string(suite.name)) != names + count)
        suite.run();
  }
  harness::expect(digests == in_order, "results differ between the two orders of threads");
  std::printf("%zu checks, %zu outputs, %zu wrong\n", checks, digests.size(), failures);
  return failures == 0 ? 0 : 1;
}
