// How a kernel of the CPU half is built for several instruction sets; row_kernels.cpp knows which is in use.

#pragma once

// On x86, GCC builds each kernel for three instruction sets and the processor's best is taken. Contraction to
// fused multiply-adds is off (setup.py), so all three give the same bits. (target_clones would write this for
// us, but cannot ask for 64-byte vectors.)
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define CROSSEARTH_X86
#include <immintrin.h>
#define CROSSEARTH_V4 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#define CROSSEARTH_V3 __attribute__((target("arch=x86-64-v3")))
#define CROSSEARTH_KERNEL(RESULT, NAME, PARAMETERS, CALL)   \
    CROSSEARTH_V4 RESULT NAME##_v4 PARAMETERS { CALL; }     \
    CROSSEARTH_V3 RESULT NAME##_v3 PARAMETERS { CALL; }     \
    RESULT NAME##_v1 PARAMETERS { CALL; }                   \
    constexpr decltype(&NAME##_v1) NAME[] = {NAME##_v1, NAME##_v3, NAME##_v4};
#else
#define CROSSEARTH_KERNEL(RESULT, NAME, PARAMETERS, CALL) \
    RESULT NAME##_v1 PARAMETERS { CALL; }                 \
    constexpr decltype(&NAME##_v1) NAME[] = {NAME##_v1};
#endif

namespace crossearth {

// An index into what CROSSEARTH_KERNEL makes.
int instruction_set_in_use();

}  // namespace crossearth
