#pragma once

// What the kernel files share, compiled for the baseline: see isa_kernels.h.

#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../common/moments.h"
#include "kernels.h"
