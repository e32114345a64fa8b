#pragma once

// What the kernel files share, compiled for the baseline: see isa_kernels.h.

#include <cstdint>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../common/moments.h"
#include "kernels.h"
