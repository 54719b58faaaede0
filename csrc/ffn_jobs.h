// How the rows of the experts are shared out: jobs of an expert's rows, and strips of a job's.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ffn_cpu.h"

namespace crossearth {

// A job's tokens stay in the second cache beside a block of weights: few enough for that, enough to be worth
// reading an expert's weights for.
constexpr std::int64_t kMostRows = 192, kFewestRows = 48, kJobsPerThread = 6;
// Of a product's depth, so that a strip stays in the first cache.
constexpr std::int64_t kDepthBlock = 384;
// Hidden units that are worked on at a time: so many times kDepthBlock floats of weights are in the second cache.
constexpr std::int64_t kHiddenBlock = 192;
constexpr int kWidestStrip = 64;

inline std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

struct Job {
    std::int64_t expert, first, count;
};

// Every expert's rows in equal parts of whole strips.
inline std::vector<Job> jobs_of(const RoutedRows& routed, std::int64_t strip, int threads) {
    const std::int64_t rows = routed.offsets[routed.experts] - routed.offsets[0];
    const std::int64_t most = std::clamp(rows / (threads * kJobsPerThread), kFewestRows, kMostRows);
    std::vector<Job> jobs;
    for (std::int64_t e = 0; e < routed.experts; ++e) {
        const std::int64_t begin = routed.offsets[e], own = routed.offsets[e + 1] - begin;
        const std::int64_t parts = (own + most - 1) / most;
        const std::int64_t part = parts ? round_up((own + parts - 1) / parts, strip) : 0;
        for (std::int64_t lo = 0; lo < own; lo += part) jobs.push_back({e, begin + lo, std::min(part, own - lo)});
    }
    return jobs;
}

// `count` of the columns of a matrix, the first of them `start`, in a panel of strips; `width` is `count` rounded up
// to whole vectors.
struct Strip {
    std::int64_t start;
    int count, width;
};

inline std::vector<Strip> strips_of(std::int64_t columns, const FfnKernels& kernels) {
    const std::int64_t full = kernels.lanes * kernels.vectors;
    std::vector<Strip> strips;
    for (std::int64_t start = 0; start < columns; start += full) {
        const std::int64_t count = std::min(full, columns - start);
        strips.push_back({start, static_cast<int>(count), static_cast<int>(round_up(count, kernels.lanes))});
    }
    return strips;
}

inline std::int64_t assignment_of(const RoutedRows& routed, std::int64_t row) {
    return routed.source ? routed.source[row] : row;
}

}  // namespace crossearth
