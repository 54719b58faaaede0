// Runs the CPU half, descriptors and maps of both sets, over random images of every pixel type, size and stride, each in a buffer
// that ends where the image does: with one thread and with several, on every instruction set, the same bits. Built
// with AddressSanitizer and UBSan by tests/descriptors/test_sanitizers.py.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/descriptors.h"
#include "../../csrc/row_kernels.h"
#include "../../csrc/scale_free.h"

using namespace crossearth;

namespace {

std::mt19937 random_bits(5);

int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

struct Found {
    std::vector<float> descriptors, map, scale_free, scale_free_map;
    std::vector<std::int64_t> nonfinite, nonfinite_of_map, nonfinite_of_scale_free;

    // The same bits, of the finite images alone or of all.
    bool same_as(const Found& other, bool finite_alone) const {
        if (nonfinite != other.nonfinite || nonfinite_of_map != other.nonfinite_of_map ||
            nonfinite_of_scale_free != other.nonfinite_of_scale_free) {
            return false;
        }
        for (std::size_t i = 0; i < nonfinite.size(); ++i) {
            if (finite_alone && nonfinite[i] > 0) continue;
            if (!same_part(descriptors, other.descriptors, i) || !same_part(map, other.map, i) ||
                !same_part(scale_free, other.scale_free, i) || !same_part(scale_free_map, other.scale_free_map, i)) {
                return false;
            }
        }
        return true;
    }

   private:
    bool same_part(const std::vector<float>& a, const std::vector<float>& b, std::size_t image) const {
        const std::size_t part = a.size() / nonfinite.size();
        return part == 0 || std::memcmp(&a[image * part], &b[image * part], sizeof(float) * part) == 0;
    }
};

void describe_scale_free(const ImageBatch& batch, int patch_size, int threads, Found* found) {
    const std::int64_t patches = patch_size ? (batch.height / patch_size) * (batch.width / patch_size) : 0;
    found->scale_free.resize(batch.images * kNumScaleFree);
    found->scale_free_map.resize(batch.images * kNumScaleFree * patches);
    found->nonfinite_of_scale_free.resize(batch.images);
    describe_scale_free_cpu(batch, patch_size, threads, found->scale_free.data(), found->scale_free_map.data(),
                            found->nonfinite_of_scale_free.data());
}

Found describe(const ImageBatch& batch, const DescriptorOptions& options, const MapOptions* map_options,
               int scale_free_patch, int threads) {
    Found found;
    describe_scale_free(batch, scale_free_patch, threads, &found);
    found.descriptors.resize(batch.images * kNumDescriptors);
    found.nonfinite.resize(batch.images);
    describe_cpu(batch, options, threads, found.descriptors.data(), found.nonfinite.data());
    if (map_options) {
        const int size = map_options->patch_size;
        found.map.resize(batch.images * kNumDescriptors * (batch.height / size) * (batch.width / size));
        found.nonfinite_of_map.resize(batch.images);
        describe_map_cpu(batch, *map_options, threads, found.map.data(), found.nonfinite_of_map.data());
    }
    return found;
}

bool in_range(float entropy, float looks, float roughness, int num_bins) {
    return entropy >= 0 && entropy <= std::log(float(num_bins)) + 1e-5f && std::isfinite(looks) && looks >= 0 &&
           std::isfinite(roughness) && roughness >= 0;
}

bool scale_free_in_range(const float* row, std::int64_t stride) {
    const float limits[kNumScaleFree][2] = {{0, 2.0795f}, {-12, 6.9079f}, {-1, 1}, {0, 40}};
    for (int i = 0; i < kNumScaleFree; ++i) {
        if (!(row[i * stride] >= limits[i][0] && row[i * stride] <= limits[i][1])) return false;
    }
    return true;
}

const char* fault_of(const Found& found, const ImageBatch& batch, int num_bins) {
    const std::size_t plane = batch.images ? found.map.size() / (batch.images * kNumDescriptors) : 0;
    for (std::int64_t i = 0; i < batch.images; ++i) {
        if (plane && found.nonfinite[i] != found.nonfinite_of_map[i]) return "other pixels are NaN or inf in the map";
        if (found.nonfinite[i] != found.nonfinite_of_scale_free[i]) return "other pixels are NaN or inf, scale-free";
        if (found.nonfinite[i] != 0) continue;
        if (!scale_free_in_range(&found.scale_free[i * kNumScaleFree], 1)) return "scale-free: out of range";
        const std::size_t patches = found.scale_free_map.size() / (batch.images * kNumScaleFree);
        for (std::size_t p = 0; p < patches; ++p) {
            if (!scale_free_in_range(&found.scale_free_map[i * kNumScaleFree * patches + p], patches)) {
                return "scale-free: a patch is out of range";
            }
        }
        const float* row = &found.descriptors[i * kNumDescriptors];
        if (!in_range(row[0], row[1], row[2], num_bins)) return "out of range";
        for (std::size_t p = 0; p < plane; ++p) {
            const float* patch = &found.map[i * kNumDescriptors * plane + p];
            if (!in_range(patch[0], patch[plane], patch[2 * plane], num_bins)) return "a patch is out of range";
        }
    }
    return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 500;
    const int best = instruction_sets() - 1;
    for (int round = 0; round < rounds; ++round) {
        const auto type = static_cast<PixelType>(round % 9);
        const std::int64_t images = pick(0, 3), height = pick(3, 90), width = pick(3, 90);
        const std::int64_t step = pick(0, 2) ? 1 : pick(2, 4), row_gap = pick(0, 5);
        const std::int64_t stride_row = (width - 1) * step + 1 + row_gap;
        const std::int64_t stride_image = (height - 1) * stride_row + (width - 1) * step + 1;
        std::vector<unsigned char> bytes(images * stride_image * pixel_bytes(type));
        // Any bits are a pixel: numbers of all sizes, and now and then NaN or inf. Some images are nearly flat.
        const int mask = pick(0, 2) ? 0xff : 0x11;
        for (auto& byte : bytes) byte = static_cast<unsigned char>(random_bits() & mask);
        const ImageBatch batch{bytes.data(), type, images, height, width, stride_image, stride_row, step};
        const int num_bins = pick(0, 1) ? kFoldedBins : 4 * pick(1, 63);
        const DescriptorOptions options{num_bins, pick(1, 100), pick(0, 1) == 1};
        const std::int64_t most = std::min(height, width) / kBlocksPerSide;
        const MapOptions map_options{num_bins, most ? kBlocksPerSide * pick(1, int(most)) : 0, options.include_flat};
        const MapOptions* wanted = most ? &map_options : nullptr;
        const int side = int(std::min(height, width)), patch = side < kMinPatch ? 0 : pick(0, 3) * pick(kMinPatch, side) / 3;
        const int scale_free_patch = patch < kMinPatch ? 0 : patch;
        const Found once = describe(batch, options, wanted, scale_free_patch, 1);
        if (!describe(batch, options, wanted, scale_free_patch, pick(2, 5)).same_as(once, false)) {
            std::printf("round %d: other bits with more threads\n", round);
            return 1;
        }
        for (int other = 0; other < best; ++other) {
            use_instruction_set(other);
            // The sign of a NaN gradient is the processor's affair.
            if (!describe(batch, options, wanted, scale_free_patch, 1).same_as(once, true)) {
                std::printf("round %d: other bits on instruction set %d\n", round, other);
                return 1;
            }
        }
        use_instruction_set(best);
        if (const char* fault = fault_of(once, batch, num_bins)) {
            std::printf("round %d: %s\n", round, fault);
            return 1;
        }
    }
    std::printf("%d rounds\n", rounds);
    return 0;
}
