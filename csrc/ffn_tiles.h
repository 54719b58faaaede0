// The inner loops of the experts' FFN over any width of vector. Included by one file per instruction set, each
// compiled for that set alone: everything here is in an unnamed namespace and includes no header with code of its
// own, so that no function built for a newer processor is linked in where an older one runs.

#pragma once

#include <immintrin.h>

#include "ffn_kernels.h"

namespace crossearth {
namespace {

constexpr int kLine = 16;  // floats of a cache line

// R rows of C, N vectors wide, in registers.
template <typename V, int R, int N>
inline __attribute__((always_inline)) void multiply_tile(const float* a, std::int64_t a_stride, const float* b,
                                                         std::int64_t k, const float* bias, float* c,
                                                         std::int64_t c_stride) {
    constexpr int L = V::kLanes;
    typename V::Reg sum[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) __builtin_prefetch(c + (R + r) * c_stride, 1);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            sum[r][n] = bias ? V::broadcast(bias[r]) : V::load(c + r * c_stride + n * L);
        }
    }
    const auto step = [&](std::int64_t i) __attribute__((always_inline)) {
        typename V::Reg column[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) column[n] = V::load(b + i * (N * L) + n * L);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename V::Reg factor = V::broadcast(a[r * a_stride + i]);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sum[r][n] = V::fma(factor, column[n], sum[r][n]);
        }
    };
    std::int64_t i = 0;
    for (; i + kLine <= k; i += kLine) {
        // The tile below this one: weights come from memory once, in pieces too short for the hardware to see.
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) __builtin_prefetch(a + (R + r) * a_stride + i);
        for (int j = 0; j < kLine; ++j) step(i + j);
    }
    for (; i < k; ++i) step(i);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) V::store(c + r * c_stride + n * L, sum[r][n]);
    }
}

// Rows that are fewer than a tile's.
template <typename V, int R, int N>
inline __attribute__((always_inline)) void multiply_rest(const float* a, std::int64_t a_stride, std::int64_t rows,
                                                         const float* b, std::int64_t k, const float* bias,
                                                         float* c, std::int64_t c_stride) {
    if constexpr (R > 0) {
        if (rows == R) {
            multiply_tile<V, R, N>(a, a_stride, b, k, bias, c, c_stride);
        } else {
            multiply_rest<V, R - 1, N>(a, a_stride, rows, b, k, bias, c, c_stride);
        }
    }
}

template <typename V, int N>
void multiply_strip(const float* a, std::int64_t a_stride, std::int64_t rows, const float* b, std::int64_t k,
                    const float* bias, float* c, std::int64_t c_stride) {
    constexpr int R = V::kRows;
    std::int64_t r = 0;
    for (; r + R <= rows; r += R) {
        multiply_tile<V, R, N>(a + r * a_stride, a_stride, b, k, bias ? bias + r : nullptr, c + r * c_stride,
                               c_stride);
    }
    multiply_rest<V, R - 1, N>(a + r * a_stride, a_stride, rows - r, b, k, bias ? bias + r : nullptr,
                               c + r * c_stride, c_stride);
}

template <typename V>
void multiply(const float* a, std::int64_t a_stride, std::int64_t rows, const float* b, std::int64_t k, int width,
              const float* bias, float* c, std::int64_t c_stride) {
    const int vectors = width / V::kLanes;
    if constexpr (V::kVectors >= 3) {
        if (vectors == 3) return multiply_strip<V, 3>(a, a_stride, rows, b, k, bias, c, c_stride);
    }
    if (vectors == 2) return multiply_strip<V, 2>(a, a_stride, rows, b, k, bias, c, c_stride);
    multiply_strip<V, 1>(a, a_stride, rows, b, k, bias, c, c_stride);
}

// 8 x 8, in place.
inline __attribute__((always_inline)) void transpose(__m256* v) {
    __m256 t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

void gather(const float* const* rows, int count, std::int64_t depth, int width, float* strip) {
    for (int first = 0; first < width; first += 8) {
        const float* from[8];
        for (int r = 0; r < 8; ++r) from[r] = rows[first + r < count ? first + r : count - 1];
        std::int64_t i = 0;
        for (; i + 8 <= depth; i += 8) {
            __m256 block[8];
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) block[r] = _mm256_loadu_ps(from[r] + i);
            transpose(block);
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) _mm256_storeu_ps(strip + (i + r) * width + first, block[r]);
        }
        for (; i < depth; ++i) {
            for (int r = 0; r < 8; ++r) strip[i * width + first + r] = from[r][i];
        }
    }
}

void scatter(const float* strip, int width, std::int64_t depth, int count, const float* scales,
             float* const* rows) {
    for (int first = 0; first < count; first += 8) {
        const int here = count - first < 8 ? count - first : 8;
        std::int64_t i = 0;
        for (; i + 8 <= depth; i += 8) {
            __m256 block[8];
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) block[r] = _mm256_loadu_ps(strip + (i + r) * width + first);
            transpose(block);
            for (int r = 0; r < here; ++r) {
                const __m256 scale = _mm256_set1_ps(scales ? scales[first + r] : 1.0f);
                _mm256_storeu_ps(rows[first + r] + i, _mm256_mul_ps(block[r], scale));
            }
        }
        for (; i < depth; ++i) {
            for (int r = 0; r < here; ++r) {
                const float scale = scales ? scales[first + r] : 1.0f;
                rows[first + r][i] = strip[i * width + first + r] * scale;
            }
        }
    }
}

template <typename V, int N>
inline __attribute__((always_inline)) typename V::Reg polynomial(const float (&coefficients)[N],
                                                                 typename V::Reg x) {
    typename V::Reg y = V::broadcast(coefficients[N - 1]);
#pragma GCC unroll 8
    for (int i = N - 2; i >= 0; --i) y = V::fma(y, x, V::broadcast(coefficients[i]));
    return y;
}

// Phi(-a) / exp(-a^2 / 2) for 0 <= a <= 13.3, relative error 5e-9; and 2^r for |r| <= 1/2, 1.9e-9: least squares
// with Lawson's weights.
constexpr float kTailAbove[] = {0.5f, 0.43569083f, 0.18130987f, 0.03998515f, 0.00402032f};
constexpr float kTailBelow[] = {1.0f, 1.66926657f, 1.19449764f, 0.46438849f, 0.1002353f, 0.01007729f};
constexpr float kPowerOfTwo[] = {1.0f, 6.93147206e-01f, 2.40226469e-01f, 5.55032878e-02f,
                                 9.61848898e-03f, 1.33999319e-03f, 1.53458082e-04f};

// exp(-x^2 / 2) and the normal distribution function Phi(x).
template <typename V>
inline __attribute__((always_inline)) void normal(typename V::Reg x, typename V::Reg* density,
                                                  typename V::Reg* distribution) {
    // From 13.27 on, 2^y underflows to 0, as it has to: below that, -inf times it would not be NaN.
    const typename V::Reg a = V::min(V::abs(x), V::broadcast(13.27f));
    const typename V::Reg square = V::mul(a, a), slope = V::broadcast(-0.72134752f);
    const typename V::Reg whole = V::round(V::mul(square, slope));
    const typename V::Reg power =
        V::times_power_of_two(polynomial<V>(kPowerOfTwo, V::fms(square, slope, whole)), whole);
    const typename V::Reg tail =
        V::mul(power, V::div(polynomial<V>(kTailAbove, a), polynomial<V>(kTailBelow, a)));
    *density = power;
    *distribution = V::where_negative(x, tail, V::sub(V::broadcast(1.0f), tail));
}

template <typename V>
void gelu(float* values, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += V::kLanes) {
        typename V::Reg x = V::load(values + i), density, distribution;
        normal<V>(x, &density, &distribution);
        V::store(values + i, V::mul(x, distribution));
    }
}

template <typename V>
void gelu_backward(float* pre, float* dact, const float* gate, float* dgate, std::int64_t columns) {
    const typename V::Reg peak = V::broadcast(0.39894228f);  // 1 / sqrt(2 pi)
    for (std::int64_t i = 0; i < columns; i += V::kLanes) {
        const typename V::Reg x = V::load(pre + i), dy = V::load(dact + i);
        typename V::Reg density, distribution;
        normal<V>(x, &density, &distribution);
        const typename V::Reg act = V::mul(x, distribution);
        const typename V::Reg slope = V::fma(V::mul(x, peak), density, distribution);
        V::store(dgate + i, V::fma(dy, act, V::load(dgate + i)));
        V::store(pre + i, act);
        V::store(dact + i, V::mul(V::mul(dy, V::load(gate + i)), slope));
    }
}

template <typename V>
void pack(const float* const* rows, std::int64_t count, std::int64_t columns, const float* scales, float* strips) {
    constexpr std::int64_t kFull = V::kLanes * V::kVectors;
    for (std::int64_t r = 0; r < count; ++r) {
        const typename V::Reg scale = V::broadcast(scales ? scales[r] : 1.0f);
        for (std::int64_t start = 0; start < columns; start += kFull) {
            const std::int64_t width = columns - start < kFull ? columns - start : kFull;
            float* const to = strips + start * count + r * width;
            for (std::int64_t i = 0; i < width; i += V::kLanes) {
                V::store(to + i, V::mul(scale, V::load(rows[r] + start + i)));
            }
        }
    }
}

template <typename V>
float sum(const float* values, std::int64_t count) {
    typename V::Reg sums = V::broadcast(0.0f);
    std::int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) sums = V::add(sums, V::load(values + i));
    float parts[V::kLanes], total = 0.0f;
    V::store(parts, sums);
    for (float part : parts) total += part;
    for (; i < count; ++i) total += values[i];
    return total;
}

template <typename V>
constexpr FfnKernels kernels_of = {V::kLanes, V::kVectors, &multiply<V>,      &gather, &scatter,
                                   &pack<V>,   &gelu<V>,    &gelu_backward<V>, &sum<V>};

}  // namespace
}  // namespace crossearth
