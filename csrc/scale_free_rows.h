// One row at a time, as row_kernels.h: what the scale-free descriptors add to it.

#pragma once

#include <cstdint>

#include "descriptor_math.h"

namespace crossearth {

// The largest |value| of `count` pixels; inf if one of them is NaN or inf.
double largest_magnitude(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count);

// (|value| * scale)^2, and 0 where that is below `smallest`. `scale` is a power of two.
void intensity_row(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count, double scale,
                   float smallest, float* out);

// Column sums of I and I^2, of I times its right neighbour (row[count] is read) and, if there is a row above, of I
// times the pixel above. Floats: to be emptied after kRowsInFloat rows.
struct ProductSums {
    float *sums, *squares, *along_x, *along_y;
};
void add_products(const float* row, const float* above, std::int64_t count, const ProductSums& to);

// out[i] = in[2 i] + in[2 i + 1], or that added to it.
void fold_pairs(const float* in, std::int64_t count, float* out);
void add_pairs_of(const float* in, std::int64_t count, float* out);

// Of a row of cells, padded as X' is in row_kernels.h: by how much each ratio gradient exceeds the floor, added to
// the sums of its direction's bin, sums[bin * stride + x]. `weights` and `codes` are room for `count` each.
void add_direction_weights(const float* up, const float* middle, const float* down, std::int64_t count, float floor,
                           float* weights, std::int32_t* codes, float* sums, std::int64_t stride);

}  // namespace crossearth
