// The arithmetic of the SAR descriptors, shared to the letter by the CPU and the CUDA translation units.
//
// Plain C++17; compiled by nvcc, every function exists on both sides. No torch, no allocation, no I/O.

#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define CROSSEARTH_HD __host__ __device__ __forceinline__
#else
#define CROSSEARTH_HD inline __attribute__((always_inline))
#endif

namespace crossearth {

// The pixel types that are read as they are; the numbers are those of PIXEL_TYPES in descriptors/fused.py.
enum class PixelType : int {
    kFloat32 = 0,
    kFloat64 = 1,
    kFloat16 = 2,
    kBFloat16 = 3,
    kUInt8 = 4,
    kUInt16 = 5,
    kInt16 = 6,
    kInt32 = 7,
    kComplex64 = 8,
};

CROSSEARTH_HD std::int64_t pixel_bytes(PixelType type) {
    switch (type) {
        case PixelType::kUInt8: return 1;
        case PixelType::kFloat16:
        case PixelType::kBFloat16:
        case PixelType::kUInt16:
        case PixelType::kInt16: return 2;
        case PixelType::kFloat64:
        case PixelType::kComplex64: return 8;
        default: return 4;
    }
}

CROSSEARTH_HD std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

CROSSEARTH_HD float float_of(std::uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// Both halves round alike, so that they give the same bits. A product that is rounded before it is added to:
// g++ is told so by -ffp-contract=off, nvcc is not left the choice.
CROSSEARTH_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

// a b + c where a b is known to be exact, which makes one rounding and two the same.
CROSSEARTH_HD float add_exact_product(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return a * b + c;
#endif
}

// f / (2 + f) for |f| < 1/2. The GPU's own division spends a third of its instructions on exponents that do not
// occur here; one Newton step on the approximate reciprocal (wrong by one unit in the last place at most) and one
// on the quotient round correctly: all f were tried with all such errors. Two negative f can come out one unit
// off, which no X' shows: there e >= 1, and the sum with e ln 2 is the same for every e.
CROSSEARTH_HD float quotient_by_two_plus(float f) {
    const float d = 2.0f + f;
#if defined(__CUDA_ARCH__)
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    r = __fmaf_rn(r, __fmaf_rn(-d, r, 1.0f), r);
    const float q = __fmul_rn(f, r);
    return __fmaf_rn(__fmaf_rn(-d, q, f), r, q);
#else
    return f / d;
#endif
}

// log(1 + x) for finite x >= 0, without a branch, so that it vectorises; NaN for x inf or NaN. With
// 1 + x = 2^e m, m in [sqrt(1/2), sqrt(2)): e ln 2 + 2 atanh(f / (2 + f)), f = m - 1. What rounding 1 + x loses
// is put back into f, which makes small x exact to the last place or two. The atanh series ends where its next
// term is below 2^-28 of the result.
CROSSEARTH_HD float log1p_positive(float x) {
    constexpr std::uint32_t kSqrtHalf = 0x3f3504f3u;
    constexpr float kLn2High = 0.693145751953125f;  // 15 bits: e * kLn2High is exact
    constexpr float kLn2Low = 1.42860677e-6f;
    const float y = 1.0f + x;
    const float lost = x - (y - 1.0f);
    const std::int32_t e = static_cast<std::int32_t>(bits_of(y) - kSqrtHalf) >> 23;
    const float m = float_of(bits_of(y) - (static_cast<std::uint32_t>(e) << 23));
    // 2^-e; 0 for e = 127 and 128, where nothing was lost.
    const float scale = float_of(static_cast<std::uint32_t>(e < 127 ? 127 - e : 0) << 23);
    const float f = add_exact_product(lost, scale, m - 1.0f);
    const float s = quotient_by_two_plus(f);
    const float z = rounded_product(s, s);
    float series = 2.0f / 7 + rounded_product(z, 2.0f / 9);
    series = 2.0f / 5 + rounded_product(z, series);
    series = 2.0f / 3 + rounded_product(z, series);
    series = rounded_product(s, 2.0f + rounded_product(z, series));
    const float exponent = static_cast<float>(e);
    return add_exact_product(exponent, kLn2High, series + rounded_product(exponent, kLn2Low));
}

// Pixels that C++ has no type for.
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
CROSSEARTH_HD float magnitude(float v) { return fabsf(v); }
CROSSEARTH_HD float magnitude(BFloat v) { return float_of(static_cast<std::uint32_t>(v.bits & 0x7fffu) << 16); }
CROSSEARTH_HD float magnitude(Half v) {
    // Half's exponent field, moved to float's place, is 112 too small; the product also mends subnormals.
    const std::uint32_t kept = v.bits & 0x7fffu;
    const float finite = float_of(kept << 13) * float_of((112u + 127u) << 23);
    return kept >= 0x7c00u ? HUGE_VALF : finite;
}
CROSSEARTH_HD float magnitude(std::uint8_t v) { return static_cast<float>(v); }
CROSSEARTH_HD float magnitude(std::uint16_t v) { return static_cast<float>(v); }
CROSSEARTH_HD float magnitude(std::int16_t v) { return fabsf(static_cast<float>(v)); }
CROSSEARTH_HD float magnitude(std::int32_t v) { return fabsf(static_cast<float>(v)); }
CROSSEARTH_HD float magnitude(Complex v) {
    const double re = v.re, im = v.im;
    // Squares of floats are exact in double: fused or not, the sum is the same. No finite pair overflows.
    const double modulus = sqrt(re * re + im * im);
    return static_cast<float>(modulus <= FLT_MAX || !(modulus < 1e39) ? modulus : double(FLT_MAX));
}

// X' = log(1 + |value|); NaN or inf exactly where the pixel is.
template <typename Pixel>
CROSSEARTH_HD float log_magnitude(Pixel v) {
    return log1p_positive(magnitude(v));
}
CROSSEARTH_HD float log_magnitude(double v) { return static_cast<float>(log1p(fabs(v))); }

template <typename Pixel>
CROSSEARTH_HD bool is_finite(Pixel v) {
    return magnitude(v) <= FLT_MAX;
}
CROSSEARTH_HD bool is_finite(double v) { return fabs(v) <= DBL_MAX; }

// Sobel's 1 2 1, of differences: taken before the smoothing, so that flat ground gives exactly zero.
CROSSEARTH_HD float smoothed(float before, float at, float after) {
    return add_exact_product(2.0f, at, before) + after;
}

// The direction of a gradient, without atan2. The plane is turned by quarter turns until the gradient lies
// in [0, 90) degrees, u > 0, v >= 0; there the number of slopes t_k with v >= t_k u is the bin within the
// quadrant. All bins are half-open, [lo, hi): a gradient on an edge belongs to the bin above.
struct Turned {
    int quarter;  // of [-pi, pi), 0 .. 3; times num_bins / 4 it is the quadrant's first bin
    int is_flat;  // no gradient
    float u, v;
};

CROSSEARTH_HD Turned turn_to_first_quadrant(float g_x, float g_y) {
    const int right = g_x > 0.0f, left = g_x < 0.0f, below = g_y > 0.0f, above = g_y < 0.0f;
    const int q0 = right & (above ^ 1), q1 = (right ^ 1) & below, q3 = (left ^ 1) & above;
    const float a_x = fabsf(g_x), a_y = fabsf(g_y);
    return {2 * q0 + 3 * q1 + q3, (right | left | below | above) ^ 1, (q1 | q3) ? a_y : a_x,
            (q1 | q3) ? a_x : a_y};
}

CROSSEARTH_HD bool reaches(float v, float slope, float u) { return v >= rounded_product(slope, u); }

// Count, mean and sum of squared deviations; two of them merge without cancellation (Chan et al.). Start from
// Moments{}: a GPU's shared memory takes no initialisers.
struct Moments {
    double count, mean, m2;

    CROSSEARTH_HD static Moments from_sums(double count, double pivot, double sum, double square_sum) {
        if (count == 0) return {};
        const double shift = sum / count, m2 = square_sum - sum * shift;
        return {count, pivot + shift, 0.0 < m2 ? m2 : 0.0};
    }
    CROSSEARTH_HD void merge(const Moments& other) {
        if (other.count == 0) return;
        const double total = count + other.count, delta = other.mean - mean;
        mean += delta * other.count / total;
        m2 += other.m2 + delta * delta * count * other.count / total;
        count = total;
    }
    CROSSEARTH_HD double variance() const { return count > 0 ? m2 / count : 0.0; }
};

constexpr double kEnlEpsilon = 1e-6;

CROSSEARTH_HD double number_of_looks(const Moments& pixels) {
    return pixels.mean * pixels.mean / (pixels.variance() + kEnlEpsilon);
}

// One bin's part of the entropy, count > 0.
CROSSEARTH_HD double entropy_part(double count, double total) { return -(count / total * log(count / total)); }

}  // namespace crossearth
