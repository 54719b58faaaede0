// One image row at a time: the loops the compiler vectorises, once per instruction set, chosen at load time.

#pragma once

#include <cstdint>

#include "descriptor_math.h"

namespace crossearth {

// The slopes tan(k * 360 / num_bins degrees) that part a quadrant's bins; num_bins divisible by 4.
struct SlopeTable {
    static constexpr int kMaxSlopes = 62;  // num_bins <= 252, so that a code fits a byte
    int num_bins = 0;
    int slopes = 0;
    float slope[kMaxSlopes] = {};
    explicit SlopeTable(int bins);
};

// X' = log(1 + |value|) of `count` pixels, `stride` elements apart, as float; returns how many of them are
// NaN or inf (their X' is unspecified).
std::int64_t log_row(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count, float* out);

// Direction codes of one row of X' from it and its neighbours, each padded by one pixel on either side, so
// that pixel x is at [x + 1]. A code is the bin, or num_bins for a pixel without gradient.
void direction_codes(const float* up, const float* middle, const float* down, std::int64_t count,
                     const SlopeTable& table, std::uint8_t* codes);

// Counts of codes; four interleaved tables keep neighbouring equal codes from waiting for each other.
struct CodeCounts {
    std::uint32_t table[4][256] = {};
    void add(const std::uint8_t* codes, std::int64_t count);
    std::int64_t of(int code) const;
};

// sums[x] += row[x] - pivot and squares[x] += (row[x] - pivot)^2, column by column, in float: to be emptied
// into doubles after kRowsInFloat rows, so that rounding stays far below the speckle.
constexpr int kRowsInFloat = 16;
void add_deviations(const float* row, std::int64_t count, float pivot, float* sums, float* squares);

}  // namespace crossearth
