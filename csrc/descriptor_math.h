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

// Both halves round alike, so that they give the same bits: a product is rounded before it is added to, unless it
// says fused_multiply_add. g++ is told so by -ffp-contract=off, nvcc is not left the choice.
CROSSEARTH_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

// a b + c, rounded once. One instruction where there is one (x86-64-v3, ARM64, GPUs); elsewhere libm's slow form,
// for the same bits.
CROSSEARTH_HD float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

// log(1 + x) for x >= 0, without branch, table or division, so that it vectorises; NaN for x inf or NaN. With
// 1 + x = 2^e (1 + f), 1 + f in about [sqrt(1/2), sqrt(2)]: e ln 2 + log(1 + f). f = x 2^-e + (2^-e - 1) is rounded
// once, and is x itself where e = 0. log(1 + f) = f - f^2/2 + f^3 Q(f); Q is fitted to a relative error of 2^-27.
// Wrong by 1.4 units in the last place at most (near x = 0.44; by 2 for x below 1e-37), mostly by less than 0.8.
CROSSEARTH_HD float log1p_positive(float x) {
    constexpr std::uint32_t kSqrtHalf = 0x3f3504f3u, kExponent = 0xff800000u, kFour = 0x40800000u;
    constexpr float kLn2High = 0.693145751953125f * 0x1p-23f;  // 15 bits: a product with e is exact
    constexpr float kLn2Low = 1.42860677e-6f * 0x1p-23f;
    const std::uint32_t e = (bits_of(1.0f + x) - kSqrtHalf) & kExponent;  // where a float has its exponent
    const float scale = float_of(kFour - e);                              // 4 * 2^-e: 2^-e could be subnormal
    const float f = fused_multiply_add(0.25f * x, scale, fused_multiply_add(0.25f, scale, -1.0f));
    const float z = rounded_product(f, f);
    float q = fused_multiply_add(f, -0x1.38b4c8p-4f, 0x1.055b46p-3f);
    q = fused_multiply_add(f, q, -0x1.0d8544p-3f);
    q = fused_multiply_add(f, q, 0x1.22da24p-3f);
    q = fused_multiply_add(f, q, -0x1.547244p-3f);
    q = fused_multiply_add(f, q, 0x1.99a008p-3f);
    q = fused_multiply_add(f, q, -0x1.000228p-2f);
    q = fused_multiply_add(f, q, 0x1.555554p-2f);
    const float exponent = static_cast<float>(static_cast<std::int32_t>(e));
    // 0 x, so that what is not finite stays so.
    float rest = fused_multiply_add(x, 0.0f, rounded_product(rounded_product(f, z), q));
    rest = fused_multiply_add(exponent, kLn2Low, rest);
    rest = fused_multiply_add(-0.5f, z, rest);
    return fused_multiply_add(exponent, kLn2High, f + rest);
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
    return fused_multiply_add(2.0f, at, before) + after;
}

// The direction of a gradient, without atan2. All bins are half-open, [lo, hi): a gradient exactly along an axis
// or a diagonal belongs to the bin above; on the other edges, whose slopes are irrational, rounding decides.
//
// For any number of bins divisible by 4, the plane is turned by quarter turns until the gradient lies in
// [0, 90) degrees, u > 0, v >= 0; there the number of slopes t_k with v >= t_k u is the bin within the quadrant.
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

// For 36 bins, the default, the plane is folded into the octant 0 <= v <= u instead, which halves the slopes: 45
// degrees is inside a bin. A folded code is a number below kFoldedCodes that says the octant (bits 0, 1 and 5: the
// signs and whether the sides were swapped) and, times 4, one for u > 0, one for v > 0 and one for every slope that
// v / u is above. Without `tells_flat`, u > 0 is taken for granted: flat pixels then have the code of angle 0.
constexpr int kFoldedBins = 36, kFoldedSlopes = 4, kFoldedCodes = 64;

CROSSEARTH_HD std::uint32_t folded_code(float g_x, float g_y, const float* slope, bool tells_flat) {
    const float a_x = float_of(bits_of(g_x) & 0x7fffffffu), a_y = float_of(bits_of(g_y) & 0x7fffffffu);
    const bool swaps = a_x < a_y;
    const float u = swaps ? a_y : a_x, v = swaps ? a_x : a_y;
    std::uint32_t code = (bits_of(g_x) >> 30 & 2u) | bits_of(g_y) >> 31;
    code += swaps ? 32u : 0u;
    code += !tells_flat || u > 0.0f ? 4u : 0u;
    code += v > 0.0f ? 4u : 0u;
    for (int k = 0; k < kFoldedSlopes; ++k) code += v > rounded_product(slope[k], u) ? 4u : 0u;
    return code;
}

// The bin of a folded code, or kFoldedBins for a pixel without gradient.
CROSSEARTH_HD int bin_of_folded_code(std::uint32_t code) {
    constexpr int kQuarter = kFoldedBins / 4;
    const int count = static_cast<int>(code >> 2 & 7u) - 2;  // slopes passed; -1 on an axis, -2 flat
    const int left = code >> 1 & 1, above = code & 1, swaps = code >> 5 & 1;  // above: g_y < 0
    const int first = above ? (left ? 0 : kQuarter) : (left ? 3 * kQuarter : 2 * kQuarter);
    // Alternate octants run against the angle; their axis, count -1, is the first edge of the next quadrant.
    const int within = left ^ above ^ swaps ? kQuarter - 1 - count : (count > 0 ? count : 0);
    const int bin = first + within;
    return count == -2 ? kFoldedBins : bin == kFoldedBins ? 0 : bin;
}

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
