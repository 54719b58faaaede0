#include "row_kernels.h"

#include <cfloat>
#include <cmath>

// GCC builds each kernel for three instruction sets and picks one at load time. Contraction to fused
// multiply-adds is off (setup.py), so all three give the same bits.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(CROSSEARTH_NO_CLONES)
#define CROSSEARTH_CLONES \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CROSSEARTH_CLONES
#endif

namespace crossearth {

namespace {

struct Half {
    std::uint16_t bits;
};
struct BFloat {
    std::uint16_t bits;
};
struct Complex {
    float re, im;
};

// |value| as float; what is not finite stays so.
CROSSEARTH_HD float magnitude(float v) { return std::fabs(v); }
CROSSEARTH_HD float magnitude(BFloat v) { return float_of(static_cast<std::uint32_t>(v.bits & 0x7fffu) << 16); }
CROSSEARTH_HD float magnitude(Half v) {
    // Half's exponent field, moved to float's place, is 112 too small; the product also mends subnormals.
    const std::uint32_t kept = v.bits & 0x7fffu;
    const float finite = float_of(kept << 13) * float_of((112u + 127u) << 23);
    return kept >= 0x7c00u ? HUGE_VALF : finite;
}
CROSSEARTH_HD float magnitude(std::uint8_t v) { return static_cast<float>(v); }
CROSSEARTH_HD float magnitude(std::uint16_t v) { return static_cast<float>(v); }
CROSSEARTH_HD float magnitude(std::int16_t v) { return std::fabs(static_cast<float>(v)); }
CROSSEARTH_HD float magnitude(std::int32_t v) { return std::fabs(static_cast<float>(v)); }
CROSSEARTH_HD float magnitude(Complex v) {
    const double re = v.re, im = v.im;
    const double modulus = std::sqrt(re * re + im * im);  // in double no finite pair overflows
    return static_cast<float>(modulus <= FLT_MAX || !(modulus < 1e39) ? modulus : double(FLT_MAX));
}

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

#define CROSSEARTH_LOG_ROW(NAME, PIXEL)                                                              \
    CROSSEARTH_CLONES std::int64_t NAME(const void* data, std::int64_t stride, std::int64_t count, \
                                        float* out) {                                              \
        return log_row_of<PIXEL>(data, stride, count, out);                                        \
    }
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
        bad += !(std::fabs(v) <= DBL_MAX);
        out[x] = static_cast<float>(std::log1p(std::fabs(v)));
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
        // Differences before smoothing: flat ground gives exactly zero.
        const float g_x = ((up[x + 2] - up[x]) + 2.0f * (middle[x + 2] - middle[x])) + (down[x + 2] - down[x]);
        const float g_y = ((down[x] - up[x]) + 2.0f * (down[x + 1] - up[x + 1])) + (down[x + 2] - up[x + 2]);
        const int right = g_x > 0.0f, left = g_x < 0.0f, below = g_y > 0.0f, above = g_y < 0.0f;
        // turn_to_first_quadrant without branches; the quadrants in the order of first_bin_of.
        const int q0 = right & (above ^ 1), q1 = (right ^ 1) & below, q3 = (left ^ 1) & above;
        const float a_x = std::fabs(g_x), a_y = std::fabs(g_y);
        const float u = (q1 | q3) ? a_y : a_x, v = (q1 | q3) ? a_x : a_y;
        int bin = (2 * q0 + 3 * q1 + q3) * quarter;
        for (int k = 0; k < slopes; ++k) bin += v >= slope[k] * u;
        const int is_flat = (right | left | below | above) ^ 1;
        codes[x] = static_cast<std::uint8_t>(is_flat ? flat_code : bin);
    }
}

CROSSEARTH_CLONES void direction_codes_36(const float* up, const float* middle, const float* down,
                                          std::int64_t count, const SlopeTable& table, std::uint8_t* codes) {
    direction_codes_of<8>(up, middle, down, count, table, codes);
}

CROSSEARTH_CLONES void direction_codes_any(const float* up, const float* middle, const float* down,
                                           std::int64_t count, const SlopeTable& table, std::uint8_t* codes) {
    direction_codes_of<0>(up, middle, down, count, table, codes);
}

}  // namespace

SlopeTable::SlopeTable(int bins) : num_bins(bins), slopes(bins / 4 - 1) {
    for (int k = 0; k < slopes; ++k) slope[k] = static_cast<float>(std::tan((k + 1) * 2.0 * M_PI / bins));
}

std::int64_t log_row(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count, float* out) {
    switch (type) {
        case PixelType::kFloat32: return log_row_float(pixels, stride, count, out);
        case PixelType::kFloat64: return log_row_double(pixels, stride, count, out);
        case PixelType::kFloat16: return log_row_half(pixels, stride, count, out);
        case PixelType::kBFloat16: return log_row_bfloat(pixels, stride, count, out);
        case PixelType::kUInt8: return log_row_u8(pixels, stride, count, out);
        case PixelType::kUInt16: return log_row_u16(pixels, stride, count, out);
        case PixelType::kInt16: return log_row_i16(pixels, stride, count, out);
        case PixelType::kInt32: return log_row_i32(pixels, stride, count, out);
        case PixelType::kComplex64: return log_row_complex(pixels, stride, count, out);
    }
    return count;
}

void direction_codes(const float* up, const float* middle, const float* down, std::int64_t count,
                     const SlopeTable& table, std::uint8_t* codes) {
    if (table.num_bins == 36) {
        direction_codes_36(up, middle, down, count, table, codes);
    } else {
        direction_codes_any(up, middle, down, count, table, codes);
    }
}

void count_codes(const std::uint8_t* codes, std::int64_t count, int num_codes, std::uint32_t* counts) {
    std::uint32_t table[4][256] = {};
    std::int64_t x = 0;
    for (; x + 4 <= count; x += 4) {
        ++table[0][codes[x]];
        ++table[1][codes[x + 1]];
        ++table[2][codes[x + 2]];
        ++table[3][codes[x + 3]];
    }
    for (; x < count; ++x) ++table[0][codes[x]];
    for (int c = 0; c < num_codes; ++c) counts[c] += table[0][c] + table[1][c] + table[2][c] + table[3][c];
}

CROSSEARTH_CLONES void add_moments(const float* row, std::int64_t count, float pivot, double* sum,
                                   double* square_sum) {
    // Eight partial sums in a fixed order: the same bits whatever the vector length.
    constexpr int kLanes = 8;
    double s[kLanes] = {}, q[kLanes] = {};
    std::int64_t x = 0;
    for (; x + kLanes <= count; x += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const double d = static_cast<double>(row[x + lane] - pivot);
            s[lane] += d;
            q[lane] += d * d;
        }
    }
    for (; x < count; ++x) {
        const double d = static_cast<double>(row[x] - pivot);
        s[0] += d;
        q[0] += d * d;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        *sum += s[lane];
        *square_sum += q[lane];
    }
}

}  // namespace crossearth
