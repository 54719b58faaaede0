// The inner loops of the experts' FFN, once per instruction set.

#pragma once

#include <cstdint>

namespace crossearth {

// The kernels take D and F that this divides: whole vectors of every instruction set.
constexpr int kWidthStep = 16;

// A strip is `width` columns of a matrix, each element of a column `width` floats from the next: (k, width), one
// column a row of tokens. `width` is lanes times 1 .. vectors.
struct FfnKernels {
    int lanes;
    int vectors;

    // C (rows, width) = A (rows, k) B (k, width), B a strip; A's rows lie `a_stride` apart, C's `c_stride`.
    // C starts as bias[row], or as what it is where bias is null.
    void (*multiply)(const float* a, std::int64_t a_stride, std::int64_t rows, const float* b, std::int64_t k,
                     int width, const float* bias, float* c, std::int64_t c_stride);

    // strip (depth, width)[i][r] = rows[r][i] for r < count; columns from `count` on repeat the last.
    void (*gather)(const float* const* rows, int count, std::int64_t depth, int width, float* strip);

    // rows[r][i] = scales[r] * strip[i][r] for r < count; scales null is 1.
    void (*scatter)(const float* strip, int width, std::int64_t depth, int count, const float* scales,
                    float* const* rows);

    // Strips of a matrix whose rows are the depth: strip (count, width)[r][i] = scales[r] * rows[r][start + i], for the
    // strips of `columns` columns one after the other; scales null is 1.
    void (*pack)(const float* const* rows, std::int64_t count, std::int64_t columns, const float* scales,
                 float* strips);

    // values[i] = gelu(values[i]), by erf; `count` is a multiple of lanes.
    void (*gelu)(float* values, std::int64_t count);

    // Of one hidden unit over `columns` rows, a multiple of lanes; each array holds one number a row.
    //     dgate += dact * gelu(pre),  pre = gelu(pre),  dact = gate * dact * gelu'(pre)
    void (*gelu_backward)(float* pre, float* dact, const float* gate, float* dgate, std::int64_t columns);

    float (*sum)(const float* values, std::int64_t count);
};

// Null where this processor, or this build, has not the instructions.
const FfnKernels* ffn_kernels_avx2();
const FfnKernels* ffn_kernels_avx512();

}  // namespace crossearth
