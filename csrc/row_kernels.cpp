#include "row_kernels.h"

#include <cfloat>
#include <cmath>

// On x86, GCC builds each kernel for three instruction sets and the processor's best is taken. Contraction to
// fused multiply-adds is off (setup.py), so all three give the same bits. (target_clones would write this for
// us, but cannot ask for 64-byte vectors.)
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define CROSSEARTH_KERNEL(RESULT, NAME, PARAMETERS, CALL)                                                      \
    __attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) RESULT NAME##_v4 PARAMETERS { return CALL; } \
    __attribute__((target("arch=x86-64-v3"))) RESULT NAME##_v3 PARAMETERS { return CALL; }                    \
    RESULT NAME##_v1 PARAMETERS { return CALL; }                                                               \
    constexpr decltype(&NAME##_v1) NAME[] = {NAME##_v1, NAME##_v3, NAME##_v4};
#else
#define CROSSEARTH_KERNEL(RESULT, NAME, PARAMETERS, CALL) \
    RESULT NAME##_v1 PARAMETERS { return CALL; }          \
    constexpr decltype(&NAME##_v1) NAME[] = {NAME##_v1};
#endif

namespace crossearth {

namespace {

template <typename Pixel>
CROSSEARTH_HD std::int64_t log_row_of(const void* data, std::int64_t stride, std::int64_t count, float* out) {
    const Pixel* pixels = static_cast<const Pixel*>(data);
    std::int32_t bad = 0;  // a row is shorter than 2^31 pixels
    if (stride == 1) {
        for (std::int64_t x = 0; x < count; ++x) {
            const float m = magnitude(pixels[x]);
            bad += !(m <= FLT_MAX);
            out[x] = log1p_positive(m);
        }
    } else {
        for (std::int64_t x = 0; x < count; ++x) {
            const float m = magnitude(pixels[x * stride]);
            bad += !(m <= FLT_MAX);
            out[x] = log1p_positive(m);
        }
    }
    return bad;
}

// Which of a kernel's forms this processor runs.
int instruction_set() {
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
    static const int chosen = __builtin_cpu_supports("x86-64-v4") ? 2 : __builtin_cpu_supports("x86-64-v3") ? 1 : 0;
    return chosen;
#else
    return 0;
#endif
}

#define CROSSEARTH_LOG_ROW(NAME, PIXEL)                                                                    \
    CROSSEARTH_KERNEL(std::int64_t, NAME,                                                                  \
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

std::int64_t log_row_double(const void* data, std::int64_t stride, std::int64_t count, float* out) {
    const double* pixels = static_cast<const double*>(data);
    std::int64_t bad = 0;
    for (std::int64_t x = 0; x < count; ++x) {
        const double v = pixels[x * stride];
        bad += !is_finite(v);
        out[x] = log_magnitude(v);
    }
    return bad;
}

template <int kSlopes>  // 0: as many as the table says
CROSSEARTH_HD void direction_codes_of(const float* up, const float* middle, const float* down,
                                      std::int64_t count, const SlopeTable& table, std::uint8_t* codes) {
    const int slopes = kSlopes ? kSlopes : table.slopes;
    const int quarter = table.num_bins / 4, flat_code = table.num_bins;
    float slope[SlopeTable::kMaxSlopes];
    for (int k = 0; k < slopes; ++k) slope[k] = table.slope[k];
    for (std::int64_t x = 0; x < count; ++x) {
        const float g_x = smoothed(up[x + 2] - up[x], middle[x + 2] - middle[x], down[x + 2] - down[x]);
        const float g_y = smoothed(down[x] - up[x], down[x + 1] - up[x + 1], down[x + 2] - up[x + 2]);
        const Turned turned = turn_to_first_quadrant(g_x, g_y);
        int bin = turned.quarter * quarter;
        for (int k = 0; k < slopes; ++k) bin += reaches(turned.v, slope[k], turned.u);
        codes[x] = static_cast<std::uint8_t>(turned.is_flat ? flat_code : bin);
    }
}

#define CROSSEARTH_CODES(NAME, SLOPES)                                                                    \
    CROSSEARTH_KERNEL(void, NAME,                                                                         \
                      (const float* up, const float* middle, const float* down, std::int64_t count,       \
                       const SlopeTable& table, std::uint8_t* __restrict__ codes),                        \
                      direction_codes_of<SLOPES>(up, middle, down, count, table, codes))
CROSSEARTH_CODES(direction_codes_36, 8)
CROSSEARTH_CODES(direction_codes_any, 0)
#undef CROSSEARTH_CODES

CROSSEARTH_HD void add_deviations_of(const float* row, std::int64_t count, float pivot, float* __restrict__ sums,
                                     float* __restrict__ squares) {
    for (std::int64_t x = 0; x < count; ++x) {
        const float d = row[x] - pivot;
        sums[x] += d;
        squares[x] += d * d;
    }
}
CROSSEARTH_KERNEL(void, add_deviations_to,
                  (const float* row, std::int64_t count, float pivot, float* sums, float* squares),
                  add_deviations_of(row, count, pivot, sums, squares))

}  // namespace

SlopeTable::SlopeTable(int bins) : num_bins(bins), slopes(bins / 4 - 1) {
    for (int k = 0; k < slopes; ++k) slope[k] = static_cast<float>(std::tan((k + 1) * 2.0 * M_PI / bins));
}

std::int64_t log_row(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count, float* out) {
    const int isa = instruction_set();
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
    return count;
}

void direction_codes(const float* up, const float* middle, const float* down, std::int64_t count,
                     const SlopeTable& table, std::uint8_t* codes) {
    if (table.num_bins == 36) {
        direction_codes_36[instruction_set()](up, middle, down, count, table, codes);
    } else {
        direction_codes_any[instruction_set()](up, middle, down, count, table, codes);
    }
}

void CodeCounts::add(const std::uint8_t* codes, std::int64_t count) {
    std::int64_t x = 0;
    for (; x + 4 <= count; x += 4) {
        ++table[0][codes[x]];
        ++table[1][codes[x + 1]];
        ++table[2][codes[x + 2]];
        ++table[3][codes[x + 3]];
    }
    for (; x < count; ++x) ++table[0][codes[x]];
}

std::int64_t CodeCounts::of(int code) const {
    return std::int64_t(table[0][code]) + table[1][code] + table[2][code] + table[3][code];
}

void add_deviations(const float* row, std::int64_t count, float pivot, float* sums, float* squares) {
    add_deviations_to[instruction_set()](row, count, pivot, sums, squares);
}

}  // namespace crossearth
