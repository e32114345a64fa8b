// The emulation's 16-bit types: every value survives the way there and back, and what lies between
// two values goes to the nearer one, or to the even one of both.

#include <cmath>

#include "harness.h"

namespace {

template <typename half_t, typename Wide, typename Narrow>
void check(const Wide& wide, const Narrow& narrow, unsigned infinity) {
  for (unsigned bits = 0; bits < infinity; ++bits) {
    const float here = wide(half_t{static_cast<uint16_t>(bits)});
    const float next = wide(half_t{static_cast<uint16_t>(bits + 1)});
    harness::expect(narrow(here).bits == bits, "a 16-bit number survives widening");
    harness::expect(narrow(-here).bits == (bits | 0x8000), "a negative one too");
    if (bits + 1 == infinity) break;
    const float middle = here + (next - here) / 2;
    harness::expect(narrow(middle).bits == bits + (bits & 1), "a tie goes to even");
    harness::expect(narrow(std::nextafter(middle, here)).bits == bits, "below the middle: down");
    harness::expect(narrow(std::nextafter(middle, next)).bits == bits + 1, "above it: up");
  }
  harness::expect(narrow(INFINITY).bits == infinity && narrow(3e38f * 10).bits == infinity,
                  "infinity stays");
  harness::expect(std::isnan(wide(narrow(NAN))), "NaN stays");
}

}  // namespace

void test_number_types() {
  check<__half>(__half2float, __float2half_rn, 0x7c00);
  check<__nv_bfloat16>(__bfloat162float, __float2bfloat16_rn, 0x7f80);
}
