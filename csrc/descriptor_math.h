// The arithmetic of the SAR descriptors, shared to the letter by the CPU and the CUDA translation units.
//
// Plain C++17; compiled by nvcc, every function exists on both sides. No torch, no allocation, no I/O.

#pragma once

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

// log(1 + x) for finite x >= 0, without a branch, so that it vectorises. With 1 + x = 2^e m,
// m in [sqrt(1/2), sqrt(2)): e ln 2 + 2 atanh(f / (2 + f)), f = m - 1. What rounding 1 + x loses is put
// back into f, which makes small x exact to the last place or two. The atanh series ends where its next
// term is below 2^-28 of the result.
CROSSEARTH_HD float log1p_positive(float x) {
    constexpr std::uint32_t kSqrtHalf = 0x3f3504f3u;
    constexpr float kLn2High = 0.693145751953125f;  // 15 bits: e * kLn2High is exact
    constexpr float kLn2Low = 1.42860677e-6f;
    const float y = 1.0f + x;
    const float lost = x - (y - 1.0f);
    const std::int32_t e = static_cast<std::int32_t>(bits_of(y) - kSqrtHalf) >> 23;
    const float m = float_of(bits_of(y) - (static_cast<std::uint32_t>(e) << 23));
    const float scale = float_of(static_cast<std::uint32_t>(127 - e) << 23);  // 2^-e; 0 for e = 127, lost = 0
    const float f = (m - 1.0f) + lost * scale;
    const float s = f / (2.0f + f);
    const float z = s * s;
    const float series = s * (2.0f + z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9)))));
    const float exponent = static_cast<float>(e);
    return exponent * kLn2High + (series + exponent * kLn2Low);
}

// The direction of a gradient, without atan2. The plane is turned by quarter turns until the gradient lies
// in [0, 90) degrees, u > 0, v >= 0; there the number of slopes t_k with v >= t_k u is the bin within the
// quadrant. All bins are half-open, [lo, hi): a gradient on an edge belongs to the bin above.
struct Turned {
    int quadrant;  // 0: [0, 90), 1: [90, 180), 2: [-180, -90), 3: [-90, 0) degrees; 4: no gradient
    float u, v;
};

CROSSEARTH_HD Turned turn_to_first_quadrant(float g_x, float g_y) {
    if (g_x > 0.0f && g_y >= 0.0f) return {0, g_x, g_y};
    if (g_x <= 0.0f && g_y > 0.0f) return {1, g_y, -g_x};
    if (g_x < 0.0f && g_y <= 0.0f) return {2, -g_x, -g_y};
    if (g_x >= 0.0f && g_y < 0.0f) return {3, -g_y, g_x};
    return {4, 0.0f, 0.0f};
}

// Bin of [-pi, pi) in which a quadrant starts, for num_bins divisible by 4.
CROSSEARTH_HD int first_bin_of(int quadrant, int num_bins) { return ((quadrant + 2) & 3) * (num_bins / 4); }

}  // namespace crossearth
