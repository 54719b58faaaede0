// The inner loops of the experts' FFN with AVX-512.

#include "instruction_sets.h"

#if defined(CROSSEARTH_X86)
#pragma GCC target("avx2,fma,avx512f,avx512dq")
#include "ffn_tiles.h"

namespace crossearth {
namespace {

struct Avx512 {
    using Reg = __m512;
    static constexpr int kLanes = 16, kVectors = 3, kRows = 8;  // 24 sums, 3 columns and a factor in 32 registers
    static Reg load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
    static Reg broadcast(float v) { return _mm512_set1_ps(v); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
    static Reg fms(Reg a, Reg b, Reg c) { return _mm512_fmsub_ps(a, b, c); }
    static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
    static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
    static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
    static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
    static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
    static Reg abs(Reg v) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), v); }
    static Reg round(Reg v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Reg where_negative(Reg sign, Reg yes, Reg no) {
        return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign)), no, yes);
    }
    // v 2^whole, for whole from -127 (where it is 0) to 0.
    static Reg times_power_of_two(Reg v, Reg whole) {
        const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
        return _mm512_mul_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23)));
    }
};

}  // namespace

const FfnKernels* ffn_kernels_avx512() {
    const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    return there && ffn_kernels_avx2() ? &kernels_of<Avx512> : nullptr;
}

}  // namespace crossearth
#else
#include "ffn_kernels.h"
const crossearth::FfnKernels* crossearth::ffn_kernels_avx512() { return nullptr; }
#endif
