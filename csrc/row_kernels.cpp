#include "row_kernels.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "instruction_sets.h"

namespace crossearth {

namespace {

int best_instruction_set() {
#if defined(CROSSEARTH_X86)
    return __builtin_cpu_supports("x86-64-v4") ? 2 : __builtin_cpu_supports("x86-64-v3") ? 1 : 0;
#else
    return 0;
#endif
}

int instruction_set = best_instruction_set();

template <typename Pixel>
CROSSEARTH_HD void log_row_of(const void* data, std::int64_t stride, std::int64_t count, float* __restrict__ out) {
    const Pixel* pixels = static_cast<const Pixel*>(data);
    if (stride == 1) {
        for (std::int64_t x = 0; x < count; ++x) out[x] = log_magnitude(pixels[x]);
    } else {
        for (std::int64_t x = 0; x < count; ++x) out[x] = log_magnitude(pixels[x * stride]);
    }
}

#define CROSSEARTH_LOG_ROW(NAME, PIXEL)                                                                    \
    CROSSEARTH_KERNEL(void, NAME,                                                                          \
                      (const void* data, std::int64_t stride, std::int64_t count, float* __restrict__ out), \
                      log_row_of<PIXEL>(data, stride, count, out))
CROSSEARTH_LOG_ROW(log_row_float, float)
CROSSEARTH_LOG_ROW(log_row_half, Half)
CROSSEARTH_LOG_ROW(log_row_bfloat, BFloat)
CROSSEARTH_LOG_ROW(log_row_u8, std::uint8_t)
CROSSEARTH_LOG_ROW(log_row_u16, std::uint16_t)
CROSSEARTH_LOG_ROW(log_row_i16, std::int16_t)
CROSSEARTH_LOG_ROW(log_row_i32, std::int32_t)
CROSSEARTH_LOG_ROW(log_row_complex, Complex)
#undef CROSSEARTH_LOG_ROW

void log_row_double(const void* data, std::int64_t stride, std::int64_t count, float* __restrict__ out) {
    log_row_of<double>(data, stride, count, out);
}

template <typename Pixel>
std::int64_t count_nonfinite_of(const void* data, std::int64_t stride, std::int64_t count) {
    const Pixel* pixels = static_cast<const Pixel*>(data);
    std::int64_t bad = 0;
    for (std::int64_t x = 0; x < count; ++x) bad += !is_finite(pixels[x * stride]);
    return bad;
}

CROSSEARTH_HD void gradients(const float* up, const float* middle, const float* down, std::int64_t x, float* g_x,
                             float* g_y) {
    *g_x = smoothed(up[x + 2] - up[x], middle[x + 2] - middle[x], down[x + 2] - down[x]);
    *g_y = smoothed(down[x] - up[x], down[x + 1] - up[x + 1], down[x + 2] - up[x + 2]);
}

CROSSEARTH_HD void codes_in_turned_plane(const float* up, const float* middle, const float* down,
                                         std::int64_t count, const SlopeTable& table, std::uint8_t* codes) {
    const int quarter = table.num_bins / 4, flat_code = table.num_bins;
    for (std::int64_t x = 0; x < count; ++x) {
        float g_x, g_y;
        gradients(up, middle, down, x, &g_x, &g_y);
        const Turned turned = turn_to_first_quadrant(g_x, g_y);
        int bin = turned.quarter * quarter;
        for (int k = 0; k < table.slopes; ++k) bin += reaches(turned.v, table.slope[k], turned.u);
        codes[x] = static_cast<std::uint8_t>(turned.is_flat ? flat_code : bin);
    }
}
CROSSEARTH_KERNEL(void, turned_codes,
                  (const float* up, const float* middle, const float* down, std::int64_t count,
                   const SlopeTable& table, std::uint8_t* __restrict__ codes),
                  codes_in_turned_plane(up, middle, down, count, table, codes))

template <bool kTellsFlat>
CROSSEARTH_HD void codes_in_folded_plane(const float* up, const float* middle, const float* down,
                                         std::int64_t count, const float* table, std::uint8_t* codes) {
    const float slope[kFoldedSlopes] = {table[0], table[1], table[2], table[3]};
    for (std::int64_t x = 0; x < count; ++x) {
        float g_x, g_y;
        gradients(up, middle, down, x, &g_x, &g_y);
        codes[x] = static_cast<std::uint8_t>(folded_code(g_x, g_y, slope, kTellsFlat));
    }
}

#define CROSSEARTH_FOLDED_PARAMETERS                                                     \
    (const float* up, const float* middle, const float* down, std::int64_t count,        \
     const float* slope, std::uint8_t* __restrict__ codes)

#if defined(CROSSEARTH_X86)
// folded_code, sixteen at a time. Written out, because the compiler spends more on changing between the widths
// of floats, truth values and bytes than on the arithmetic.
template <bool kTellsFlat>
CROSSEARTH_V4 void folded_codes_v4 CROSSEARTH_FOLDED_PARAMETERS {
    constexpr int kLanes = 16, kSmallerOfMagnitudes = 0b1010, kLargerOfMagnitudes = 0b1011;
    constexpr int kFirstWhereThird = 0xe4;  // truth table of c ? a : b
    static_assert(kLanes <= kRowSlack);
    const __m512i sign = _mm512_set1_epi32(INT32_MIN), one = _mm512_set1_epi32(4);
    const __m512i kept = _mm512_set1_epi32(kTellsFlat ? 0 : 4), swapped = _mm512_set1_epi32(kTellsFlat ? 32 : 36);
    const __m512 zero = _mm512_setzero_ps(), two = _mm512_set1_ps(2.0f);
    __m512 slopes[kFoldedSlopes];
    for (int k = 0; k < kFoldedSlopes; ++k) slopes[k] = _mm512_set1_ps(slope[k]);
    const auto count_above = [&](__m512i code, __m512 a, __m512 b) CROSSEARTH_V4 {
        return _mm512_mask_add_epi32(code, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), code, one);
    };
    for (std::int64_t x = 0; x < count; x += kLanes) {
        const __m512 up_0 = _mm512_loadu_ps(up + x), up_1 = _mm512_loadu_ps(up + x + 1);
        const __m512 up_2 = _mm512_loadu_ps(up + x + 2), down_0 = _mm512_loadu_ps(down + x);
        const __m512 down_1 = _mm512_loadu_ps(down + x + 1), down_2 = _mm512_loadu_ps(down + x + 2);
        const __m512 across = _mm512_sub_ps(_mm512_loadu_ps(middle + x + 2), _mm512_loadu_ps(middle + x));
        const __m512 g_x = _mm512_add_ps(_mm512_fmadd_ps(two, across, _mm512_sub_ps(up_2, up_0)),
                                         _mm512_sub_ps(down_2, down_0));
        const __m512 g_y = _mm512_add_ps(
            _mm512_fmadd_ps(two, _mm512_sub_ps(down_1, up_1), _mm512_sub_ps(down_0, up_0)),
            _mm512_sub_ps(down_2, up_2));
        const __m512 u = _mm512_range_ps(g_x, g_y, kLargerOfMagnitudes);
        const __m512 v = _mm512_range_ps(g_x, g_y, kSmallerOfMagnitudes);
        const __mmask16 swaps = _mm512_cmp_ps_mask(_mm512_abs_ps(g_x), u, _CMP_LT_OQ);
        const __m512i signs = _mm512_ternarylogic_epi32(
            _mm512_castps_si512(g_x), _mm512_srli_epi32(_mm512_castps_si512(g_y), 1), sign, kFirstWhereThird);
        __m512i code = _mm512_or_si512(_mm512_mask_blend_epi32(swaps, kept, swapped), _mm512_srli_epi32(signs, 30));
        if (kTellsFlat) code = count_above(code, u, zero);
        code = count_above(code, v, zero);
        for (int k = 0; k < kFoldedSlopes; ++k) code = count_above(code, v, _mm512_mul_ps(slopes[k], u));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + x), _mm512_cvtepi32_epi8(code));
    }
}
#define CROSSEARTH_FOLDED(NAME, TELLS_FLAT)                                                     \
    CROSSEARTH_V3 void NAME##_v3 CROSSEARTH_FOLDED_PARAMETERS {                                 \
        codes_in_folded_plane<TELLS_FLAT>(up, middle, down, count, slope, codes);               \
    }                                                                                           \
    void NAME##_v1 CROSSEARTH_FOLDED_PARAMETERS {                                               \
        codes_in_folded_plane<TELLS_FLAT>(up, middle, down, count, slope, codes);               \
    }                                                                                           \
    constexpr decltype(&NAME##_v1) NAME[] = {NAME##_v1, NAME##_v3, folded_codes_v4<TELLS_FLAT>};
#else
#define CROSSEARTH_FOLDED(NAME, TELLS_FLAT)           \
    CROSSEARTH_KERNEL(void, NAME, CROSSEARTH_FOLDED_PARAMETERS, \
                      codes_in_folded_plane<TELLS_FLAT>(up, middle, down, count, slope, codes))
#endif
CROSSEARTH_FOLDED(folded_codes, false)
CROSSEARTH_FOLDED(folded_codes_and_flat, true)
#undef CROSSEARTH_FOLDED
#undef CROSSEARTH_FOLDED_PARAMETERS

CROSSEARTH_HD void add_deviations_of(const float* row, const float* pivots, std::int64_t count,
                                     float* __restrict__ sums, float* __restrict__ squares) {
    for (std::int64_t x = 0; x < count; ++x) {
        const float d = row[x] - pivots[x];
        sums[x] += d;
        squares[x] = fused_multiply_add(d, d, squares[x]);
    }
}
CROSSEARTH_KERNEL(void, add_deviations_to,
                  (const float* row, const float* pivots, std::int64_t count, float* __restrict__ sums,
                   float* __restrict__ squares),
                  add_deviations_of(row, pivots, count, sums, squares))

}  // namespace

SlopeTable::SlopeTable(int bins) : num_bins(bins), slopes(bins / 4 - 1) {
    for (int k = 0; k < slopes; ++k) slope[k] = static_cast<float>(std::tan((k + 1) * 2.0 * M_PI / bins));
}

int instruction_sets() { return best_instruction_set() + 1; }

int instruction_set_in_use() { return instruction_set; }

void use_instruction_set(int index) { instruction_set = index; }

void log_row(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count, float* out) {
    const int isa = instruction_set;
    switch (type) {
        case PixelType::kFloat32: return log_row_float[isa](pixels, stride, count, out);
        case PixelType::kFloat64: return log_row_double(pixels, stride, count, out);
        case PixelType::kFloat16: return log_row_half[isa](pixels, stride, count, out);
        case PixelType::kBFloat16: return log_row_bfloat[isa](pixels, stride, count, out);
        case PixelType::kUInt8: return log_row_u8[isa](pixels, stride, count, out);
        case PixelType::kUInt16: return log_row_u16[isa](pixels, stride, count, out);
        case PixelType::kInt16: return log_row_i16[isa](pixels, stride, count, out);
        case PixelType::kInt32: return log_row_i32[isa](pixels, stride, count, out);
        case PixelType::kComplex64: return log_row_complex[isa](pixels, stride, count, out);
    }
}

std::int64_t count_nonfinite(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count) {
    switch (type) {
        case PixelType::kFloat32: return count_nonfinite_of<float>(pixels, stride, count);
        case PixelType::kFloat64: return count_nonfinite_of<double>(pixels, stride, count);
        case PixelType::kFloat16: return count_nonfinite_of<Half>(pixels, stride, count);
        case PixelType::kBFloat16: return count_nonfinite_of<BFloat>(pixels, stride, count);
        case PixelType::kComplex64: return count_nonfinite_of<Complex>(pixels, stride, count);
        default: return 0;
    }
}

void direction_codes(const float* up, const float* middle, const float* down, std::int64_t count,
                     const SlopeTable& table, bool tells_flat, std::uint8_t* codes) {
    const int isa = instruction_set;
    if (table.num_bins != kFoldedBins) {
        turned_codes[isa](up, middle, down, count, table, codes);
    } else if (tells_flat) {
        folded_codes_and_flat[isa](up, middle, down, count, table.slope, codes);
    } else {
        folded_codes[isa](up, middle, down, count, table.slope, codes);
    }
}

int bin_of_code(int code, int num_bins) {
    return num_bins == kFoldedBins ? bin_of_folded_code(static_cast<std::uint32_t>(code)) : code;
}

int number_of_codes(int num_bins) { return num_bins == kFoldedBins ? kFoldedCodes : num_bins + 1; }

CodeCounts::CodeCounts(int num_bins) : num_bins_(num_bins) {
    if (num_bins_ == kFoldedBins) {
        std::memset(pairs_, 0, sizeof pairs_);
    } else {
        std::memset(singles_, 0, sizeof singles_);
    }
}

void CodeCounts::add(const std::uint8_t* codes, std::int64_t count) {
    std::int64_t x = 0;
    if (num_bins_ == kFoldedBins) {
        for (const std::int64_t pairs = count / 2; x / 2 < pairs;) {
            if (pairs_held_ == kMostPairs) empty_pairs();
            const std::int64_t now = std::min(pairs - x / 2, kMostPairs - pairs_held_);
            add_pairs(codes + x, now);
            pairs_held_ += now;
            x += 2 * now;
        }
    } else {
        for (; x + 4 <= count; x += 4) {
            ++singles_[0][codes[x]];
            ++singles_[1][codes[x + 1]];
            ++singles_[2][codes[x + 2]];
            ++singles_[3][codes[x + 3]];
        }
    }
    for (; x < count; ++x) ++counts_[codes[x]];
}

void CodeCounts::add_pairs(const std::uint8_t* codes, std::int64_t pairs) {
    constexpr int kAtOnce = 4;
    std::int64_t i = 0;
    for (; i + kAtOnce <= pairs; i += kAtOnce) {
        // Eight codes of six bits: each pair's into twelve. Which of a pair comes first does not matter.
        std::uint64_t eight;
        std::memcpy(&eight, codes + 2 * i, sizeof eight);
        const std::uint64_t four = (eight & 0x00ff00ff00ff00ffu) | (eight >> 2 & 0x0fc00fc00fc00fc0u);
        ++pairs_[0][four & 0xffffu];
        ++pairs_[1][four >> 16 & 0xffffu];
        ++pairs_[0][four >> 32 & 0xffffu];
        ++pairs_[1][four >> 48];
    }
    for (; i < pairs; ++i) ++pairs_[0][codes[2 * i] | codes[2 * i + 1] << 6];
}

void CodeCounts::empty_pairs() {
    for (int second = 0; second < kFoldedCodes; ++second) {
        for (int first = 0; first < kFoldedCodes; ++first) {
            const int cell = second * kFoldedCodes + first;
            const std::int64_t count = std::int64_t(pairs_[0][cell]) + pairs_[1][cell];
            counts_[first] += count;
            counts_[second] += count;
        }
    }
    std::memset(pairs_, 0, sizeof pairs_);
    pairs_held_ = 0;
}

void CodeCounts::add_to(std::int64_t* bins) {
    if (num_bins_ == kFoldedBins) empty_pairs();
    for (int code = 0; code < number_of_codes(num_bins_); ++code) {
        std::int64_t count = counts_[code];
        if (num_bins_ != kFoldedBins) {
            for (const auto& table : singles_) count += table[code];
        }
        if (count > 0) bins[bin_of_code(code, num_bins_)] += count;
    }
}

void add_deviations(const float* row, const float* pivots, std::int64_t count, float* sums, float* squares) {
    add_deviations_to[instruction_set](row, pivots, count, sums, squares);
}

double sum_of(const float* values, std::int64_t count) {
    double parts[4] = {};
    std::int64_t x = 0;
    for (; x + 4 <= count; x += 4) {
        for (int j = 0; j < 4; ++j) parts[j] += values[x + j];
    }
    for (; x < count; ++x) parts[0] += values[x];
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
}

}  // namespace crossearth
