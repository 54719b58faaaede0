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

// Rows of X' and of codes have room for this many more elements behind their last: a kernel may read and write
// them (what is there means nothing).
constexpr int kRowSlack = 16;

// X' = log(1 + |value|) of `count` pixels, `stride` elements apart, as float; NaN or inf where the pixel is.
void log_row(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count, float* out);

// How many of `count` pixels are NaN or inf.
std::int64_t count_nonfinite(PixelType type, const void* pixels, std::int64_t stride, std::int64_t count);

// Direction codes of one row of X' from it and its neighbours, each padded by one pixel on either side, so that
// pixel x is at [x + 1]. With 36 bins they are folded codes (descriptor_math.h); else a code is the bin, or num_bins
// for a pixel without gradient. Without `tells_flat`, such a pixel may have the code of angle 0.
void direction_codes(const float* up, const float* middle, const float* down, std::int64_t count,
                     const SlopeTable& table, bool tells_flat, std::uint8_t* codes);

// The bin of a code of direction_codes, num_bins for a pixel without gradient.
int bin_of_code(int code, int num_bins);
int number_of_codes(int num_bins);

// Counts of codes. Folded codes are counted in pairs of neighbours, which halves the work; two or four interleaved
// tables keep neighbouring equal codes from waiting for each other.
class CodeCounts {
   public:
    explicit CodeCounts(int num_bins);
    void add(const std::uint8_t* codes, std::int64_t count);
    // Adds the count of each bin, [num_bins] being pixels without gradient, to bins[0 .. num_bins].
    void add_to(std::int64_t* bins);

   private:
    void add_pairs(const std::uint8_t* codes, std::int64_t pairs);
    void empty_pairs();

    static constexpr std::int64_t kMostPairs = 65535;  // in one cell, if all are alike
    const int num_bins_;
    std::int64_t pairs_held_ = 0;
    std::int64_t counts_[256] = {};
    union {
        std::uint32_t singles_[4][256];
        std::uint16_t pairs_[2][kFoldedCodes * kFoldedCodes];
    };
};

// sums[x] += row[x] - pivots[x] and squares[x] += (row[x] - pivots[x])^2, column by column, in float: to be emptied
// into doubles after kRowsInFloat rows, so that rounding stays far below the speckle.
constexpr int kRowsInFloat = 16;
void add_deviations(const float* row, const float* pivots, std::int64_t count, float* sums, float* squares);

// The sum in double; the same on every instruction set.
double sum_of(const float* values, std::int64_t count);

// The instruction set in use, 0 .. instruction_sets() - 1; the last is the best that this processor has. Tests try
// them all.
int instruction_sets();
void use_instruction_set(int index);

}  // namespace crossearth
