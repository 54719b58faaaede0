// Runs the CPU half over random images of every pixel type, size and stride, each in a buffer that ends where
// the image does. Built with AddressSanitizer and UBSan by tests/descriptors/test_sanitizers.py.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/descriptors.h"

using namespace crossearth;

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 500;
    std::mt19937 random(5);
    const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
    for (int round = 0; round < rounds; ++round) {
        const auto type = static_cast<PixelType>(round % 9);
        const std::int64_t images = pick(0, 3), height = pick(3, 90), width = pick(3, 90);
        const std::int64_t step = pick(0, 2) ? 1 : pick(2, 4), row_gap = pick(0, 5);
        const std::int64_t stride_row = (width - 1) * step + 1 + row_gap;
        const std::int64_t stride_image = (height - 1) * stride_row + (width - 1) * step + 1;
        std::vector<unsigned char> bytes(images * stride_image * pixel_bytes(type));
        // Any bits are a pixel: numbers of all sizes, and now and then NaN or inf.
        for (auto& byte : bytes) byte = static_cast<unsigned char>(random());
        const ImageBatch batch{bytes.data(), type, images, height, width, stride_image, stride_row, step};
        const DescriptorOptions options{4 * pick(1, 63), pick(1, 100), pick(0, 1) == 1};
        std::vector<float> once(images * kNumDescriptors), again(once.size());
        std::vector<std::int64_t> nonfinite(images);
        describe_cpu(batch, options, 1, once.data(), nonfinite.data());
        describe_cpu(batch, options, pick(2, 5), again.data(), nonfinite.data());
        for (std::int64_t i = 0; i < images; ++i) {
            const float* row = once.data() + i * kNumDescriptors;
            if (std::memcmp(row, again.data() + i * kNumDescriptors, sizeof(float) * kNumDescriptors) != 0) {
                std::printf("round %d: other bits with more threads\n", round);
                return 1;
            }
            const bool in_range = row[0] >= 0 && row[0] <= std::log(float(options.num_bins)) + 1e-5f &&
                                  std::isfinite(row[1]) && row[1] >= 0 && std::isfinite(row[2]) && row[2] >= 0;
            if (nonfinite[i] == 0 && !in_range) {
                std::printf("round %d: %g %g %g of a finite image\n", round, row[0], row[1], row[2]);
                return 1;
            }
        }
    }
    std::printf("%d rounds\n", rounds);
    return 0;
}
