// The inner loops of the experts' FFN with AVX2 and FMA.

#include "instruction_sets.h"

#if defined(CROSSEARTH_X86)
#pragma GCC target("avx2,fma")
#include "ffn_tiles.h"

namespace crossearth {
namespace {

struct Avx2 {
    using Reg = __m256;
    static constexpr int kLanes = 8, kVectors = 2, kRows = 6;  // 12 sums, 2 columns and a factor in 16 registers
    static Reg load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
    static Reg broadcast(float v) { return _mm256_set1_ps(v); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
    static Reg fms(Reg a, Reg b, Reg c) { return _mm256_fmsub_ps(a, b, c); }
    static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
    static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
    static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
    static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
    static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
    static Reg abs(Reg v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
    static Reg round(Reg v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Reg where_negative(Reg sign, Reg yes, Reg no) { return _mm256_blendv_ps(no, yes, sign); }
    // v 2^whole, for whole from -127 (where it is 0) to 0.
    static Reg times_power_of_two(Reg v, Reg whole) {
        const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
        return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
    }
};

}  // namespace

const FfnKernels* ffn_kernels_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels_of<Avx2> : nullptr;
}

}  // namespace crossearth
#else
#include "ffn_kernels.h"
const crossearth::FfnKernels* crossearth::ffn_kernels_avx2() { return nullptr; }
#endif
