// Where the CPU half's time goes: nanoseconds a pixel of each row kernel, one thread, rows of 512 pixels in the cache,
// the fastest of many repetitions, for every instruction set of this processor.
//
//   g++ -std=c++17 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp
//       tests/native/time_row_kernels.cpp csrc/row_kernels.cpp -o time_row_kernels && ./time_row_kernels

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <vector>

#include "../../csrc/row_kernels.h"

using namespace crossearth;

namespace {

constexpr std::int64_t kWidth = 512;

template <typename Call>
double nanoseconds_a_pixel(const Call& call) {
    constexpr int kRepetitions = 200, kCalls = 100;
    double fastest = 1e30;
    for (int i = 0; i < kRepetitions; ++i) {
        const auto start = std::chrono::steady_clock::now();
        for (int j = 0; j < kCalls; ++j) call();
        const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
        fastest = std::min(fastest, took.count() / (kCalls * kWidth));
    }
    return fastest;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    std::gamma_distribution<float> four_looks(4, 0.25f);
    std::vector<float> pixels(kWidth), sums(kWidth), squares(kWidth), pivots(kWidth, 0.7f), logs(kWidth + 2 + kRowSlack);
    std::vector<float> rows[3];
    for (auto& pixel : pixels) pixel = four_looks(random);
    for (auto& row : rows) {
        row.resize(kWidth + 2 + kRowSlack);
        for (auto& x : row) x = log1p_positive(four_looks(random));
    }
    std::vector<std::uint8_t> codes(kWidth + kRowSlack);
    const SlopeTable table(kFoldedBins);
    CodeCounts counts(kFoldedBins);
    for (int isa = 0; isa < instruction_sets(); ++isa) {
        use_instruction_set(isa);
        const double logarithm =
            nanoseconds_a_pixel([&] { log_row(PixelType::kFloat32, pixels.data(), 1, kWidth, logs.data()); });
        const double directions = nanoseconds_a_pixel([&] {
            direction_codes(rows[0].data(), rows[1].data(), rows[2].data(), kWidth, table, false, codes.data());
        });
        const double histogram = nanoseconds_a_pixel([&] { counts.add(codes.data(), kWidth); });
        const double moments = nanoseconds_a_pixel(
            [&] { add_deviations(logs.data() + 1, pivots.data(), kWidth, sums.data(), squares.data()); });
        std::printf("instruction set %d: logarithm %.2f, directions %.2f, histogram %.2f, sums %.2f ns a pixel\n", isa,
                    logarithm, directions, histogram, moments);
    }
    return 0;
}
