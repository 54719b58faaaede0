#include "scale_free_rows.h"

#include <cmath>
#include <limits>

#include "instruction_sets.h"
#include "scale_free.h"

namespace crossearth {

namespace {

// Of numbers that are not negative the larger has the larger bits, NaN and inf the largest: integers compare in
// vectors where floats, for NaN's sake, do not.
template <typename Pixel>
CROSSEARTH_HD std::uint32_t largest_bits_of(const void* data, std::int64_t stride, std::int64_t count) {
    const Pixel* pixels = static_cast<const Pixel*>(data);
    std::uint32_t largest = 0;
    if (stride == 1) {
        for (std::int64_t x = 0; x < count; ++x) {
            const std::uint32_t bits = bits_of(magnitude(pixels[x]));
            largest = bits > largest ? bits : largest;
        }
    } else {
        for (std::int64_t x = 0; x < count; ++x) {
            const std::uint32_t bits = bits_of(magnitude(pixels[x * stride]));
            largest = bits > largest ? bits : largest;
        }
    }
    return largest;
}

template <typename Pixel>
CROSSEARTH_HD void intensity_row_of(const void* data, std::int64_t stride, std::int64_t count, float scale,
                                    float smallest, float* __restrict__ out) {
    const Pixel* pixels = static_cast<const Pixel*>(data);
    for (std::int64_t x = 0; x < count; ++x) {
        const float scaled = magnitude(stride == 1 ? pixels[x] : pixels[x * stride]) * scale;
        const float intensity = scaled * scaled;
        out[x] = intensity < smallest ? 0.0f : intensity;
    }
}

#define CROSSEARTH_PIXEL_ROWS(NAME, PIXEL)                                                                          \
    CROSSEARTH_KERNEL(std::uint32_t, largest_##NAME, (const void* data, std::int64_t stride, std::int64_t count),   \
                      return largest_bits_of<PIXEL>(data, stride, count))                                           \
    CROSSEARTH_KERNEL(void, intensity_##NAME,                                                                       \
                      (const void* data, std::int64_t stride, std::int64_t count, float scale, float smallest,      \
                       float* __restrict__ out),                                                                    \
                      intensity_row_of<PIXEL>(data, stride, count, scale, smallest, out))
CROSSEARTH_PIXEL_ROWS(float, float)
CROSSEARTH_PIXEL_ROWS(half, Half)
CROSSEARTH_PIXEL_ROWS(bfloat, BFloat)
CROSSEARTH_PIXEL_ROWS(u8, std::uint8_t)
CROSSEARTH_PIXEL_ROWS(u16, std::uint16_t)
CROSSEARTH_PIXEL_ROWS(i16, std::int16_t)
CROSSEARTH_PIXEL_ROWS(i32, std::int32_t)
CROSSEARTH_PIXEL_ROWS(complex, Complex)
#undef CROSSEARTH_PIXEL_ROWS

double largest_double(const double* pixels, std::int64_t stride, std::int64_t count) {
    double largest = 0;
    for (std::int64_t x = 0; x < count; ++x) {
        if (!is_finite(pixels[x * stride])) return HUGE_VAL;
        largest = std::fmax(largest, std::fabs(pixels[x * stride]));
    }
    return largest;
}

CROSSEARTH_HD void add_products_of(const float* row, const float* above, std::int64_t count, float* __restrict__ sums,
                                   float* __restrict__ squares, float* __restrict__ along_x,
                                   float* __restrict__ along_y) {
    if (above) {
        for (std::int64_t x = 0; x < count; ++x) along_y[x] = fused_multiply_add(row[x], above[x], along_y[x]);
    }
    for (std::int64_t x = 0; x < count; ++x) {
        sums[x] += row[x];
        squares[x] = fused_multiply_add(row[x], row[x], squares[x]);
        along_x[x] = fused_multiply_add(row[x], row[x + 1], along_x[x]);
    }
}
CROSSEARTH_KERNEL(void, add_products_to,
                  (const float* row, const float* above, std::int64_t count, float* __restrict__ sums,
                   float* __restrict__ squares, float* __restrict__ along_x, float* __restrict__ along_y),
                  add_products_of(row, above, count, sums, squares, along_x, along_y))

CROSSEARTH_HD void fold_pairs_of(const float* in, std::int64_t count, float* __restrict__ out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = in[2 * i] + in[2 * i + 1];
}
CROSSEARTH_KERNEL(void, fold_pairs_to, (const float* in, std::int64_t count, float* __restrict__ out),
                  fold_pairs_of(in, count, out))

CROSSEARTH_HD void add_folded_pairs(const float* in, std::int64_t count, float* __restrict__ out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] += in[2 * i] + in[2 * i + 1];
}
CROSSEARTH_KERNEL(void, add_pairs_to, (const float* in, std::int64_t count, float* __restrict__ out),
                  add_folded_pairs(in, count, out))

CROSSEARTH_HD float smaller(float a, float b) { return a < b ? a : b; }

// A line's direction is known up to half a turn: two gradients of opposite sign have one code. Where a cell is empty
// the quotient may be NaN; its weight is 0 all the same.
CROSSEARTH_HD void weigh_directions(const float* up, const float* middle, const float* down, std::int64_t count,
                                    float floor, float* __restrict__ weights, std::int32_t* __restrict__ codes) {
    constexpr float kSlopes[] = {0.198912367f, 0.668178638f, 1.49660576f, 5.02733949f};  // of 11.25, 33.75, … degrees
    for (std::int64_t x = 0; x < count; ++x) {
        const float left = smoothed(up[x], middle[x], down[x]), right = smoothed(up[x + 2], middle[x + 2], down[x + 2]);
        const float above = smoothed(up[x], up[x + 1], up[x + 2]), below = smoothed(down[x], down[x + 1], down[x + 2]);
        const float r_x = (right - left) / (right + left), r_y = (below - above) / (below + above);
        const float least = smaller(
            smaller(smaller(smaller(up[x], up[x + 1]), smaller(up[x + 2], middle[x])), smaller(middle[x + 1], middle[x + 2])),
            smaller(smaller(down[x], down[x + 1]), down[x + 2]));
        const float excess = sqrtf(rounded_product(r_x, r_x) + rounded_product(r_y, r_y)) - floor;
        weights[x] = least > 0.0f && excess > 0.0f ? excess : 0.0f;
        const float u = float_of(bits_of(r_x) & 0x7fffffffu), v = float_of(bits_of(r_y) & 0x7fffffffu);
        std::int32_t level = 0;
        for (const float slope : kSlopes) level += v > rounded_product(slope, u) ? 1 : 0;
        const bool falls = (bits_of(r_x) ^ bits_of(r_y)) >> 31;
        codes[x] = falls ? (kDirectionBins - level) & (kDirectionBins - 1) : level;
    }
}

CROSSEARTH_HD void add_weights_of(const float* weights, const std::int32_t* codes, std::int64_t count,
                                  std::int64_t stride, float* __restrict__ sums) {
    for (std::int32_t bin = 0; bin < kDirectionBins; ++bin) {
        float* of_bin = sums + bin * stride;
        for (std::int64_t x = 0; x < count; ++x) of_bin[x] += codes[x] == bin ? weights[x] : 0.0f;
    }
}
CROSSEARTH_KERNEL(void, weigh_directions_of,
                  (const float* up, const float* middle, const float* down, std::int64_t count, float floor,
                   float* __restrict__ weights, std::int32_t* __restrict__ codes),
                  weigh_directions(up, middle, down, count, floor, weights, codes))
CROSSEARTH_KERNEL(void, add_weights_to,
                  (const float* weights, const std::int32_t* codes, std::int64_t count, std::int64_t stride,
                   float* __restrict__ sums),
                  add_weights_of(weights, codes, count, stride, sums))

}  // namespace

double largest_magnitude(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count) {
    const int isa = instruction_set_in_use();
    std::uint32_t bits = 0;
    switch (type) {
        case PixelType::kFloat32: bits = largest_float[isa](pixels, stride, count); break;
        case PixelType::kFloat64: return largest_double(static_cast<const double*>(pixels), stride, count);
        case PixelType::kFloat16: bits = largest_half[isa](pixels, stride, count); break;
        case PixelType::kBFloat16: bits = largest_bfloat[isa](pixels, stride, count); break;
        case PixelType::kUInt8: bits = largest_u8[isa](pixels, stride, count); break;
        case PixelType::kUInt16: bits = largest_u16[isa](pixels, stride, count); break;
        case PixelType::kInt16: bits = largest_i16[isa](pixels, stride, count); break;
        case PixelType::kInt32: bits = largest_i32[isa](pixels, stride, count); break;
        case PixelType::kComplex64: bits = largest_complex[isa](pixels, stride, count); break;
    }
    const double largest = float_of(bits & 0x7fffffffu);
    return largest <= FLT_MAX ? largest : HUGE_VAL;
}

void intensity_row(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count, double scale,
                   float smallest, float* out) {
    const int isa = instruction_set_in_use();
    const float factor = float(scale);
    switch (type) {
        case PixelType::kFloat32: return intensity_float[isa](pixels, stride, count, factor, smallest, out);
        case PixelType::kFloat64: {
            const double* values = static_cast<const double*>(pixels);
            for (std::int64_t x = 0; x < count; ++x) {
                const float scaled = float(std::fabs(values[x * stride]) * scale), intensity = scaled * scaled;
                out[x] = intensity < smallest ? 0.0f : intensity;
            }
            return;
        }
        case PixelType::kFloat16: return intensity_half[isa](pixels, stride, count, factor, smallest, out);
        case PixelType::kBFloat16: return intensity_bfloat[isa](pixels, stride, count, factor, smallest, out);
        case PixelType::kUInt8: return intensity_u8[isa](pixels, stride, count, factor, smallest, out);
        case PixelType::kUInt16: return intensity_u16[isa](pixels, stride, count, factor, smallest, out);
        case PixelType::kInt16: return intensity_i16[isa](pixels, stride, count, factor, smallest, out);
        case PixelType::kInt32: return intensity_i32[isa](pixels, stride, count, factor, smallest, out);
        case PixelType::kComplex64: return intensity_complex[isa](pixels, stride, count, factor, smallest, out);
    }
}

void add_products(const float* row, const float* above, std::int64_t count, const ProductSums& to) {
    add_products_to[instruction_set_in_use()](row, above, count, to.sums, to.squares, to.along_x, to.along_y);
}

void fold_pairs(const float* in, std::int64_t count, float* out) {
    fold_pairs_to[instruction_set_in_use()](in, count, out);
}

void add_pairs_of(const float* in, std::int64_t count, float* out) {
    add_pairs_to[instruction_set_in_use()](in, count, out);
}

void add_direction_weights(const float* up, const float* middle, const float* down, std::int64_t count, float floor,
                           float* weights, std::int32_t* codes, float* sums, std::int64_t stride) {
    const int isa = instruction_set_in_use();
    weigh_directions_of[isa](up, middle, down, count, floor, weights, codes);
    add_weights_to[isa](weights, codes, count, stride, sums);
}

}  // namespace crossearth
