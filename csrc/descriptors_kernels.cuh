// The kernels of the CUDA half: each pixel is read once, by a warp that walks down a stripe of 128 columns and 32 rows.
//
// A lane owns four columns and keeps three rows of X' in registers; its neighbours' columns come by shuffle, and
// the two columns beside the stripe from a few logarithms taken beforehand. So a logarithm is computed 1.08 times
// a pixel, nothing but the histogram is in shared memory, and no warp waits for another until the end.
// Then one block per image merges what the stripes found, in order. It is a kernel of its own: the order of
// launches is all the synchronisation, no counter has to be reset, and the same scratch serves any next call.
//
// What is computed per pixel is in descriptor_math.h and gives the bits of the CPU half, whatever -fmad says
// (but for double pixels, where the two log1p may differ in the last place). Every floating sum has a fixed
// order; the only atomics add integers.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "descriptors.h"
#include "row_kernels.h"

namespace crossearth {

namespace {

constexpr int kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kColumns = 4;  // of a lane
constexpr int kTileWarps = 4, kTileThreads = kTileWarps * kWarpLanes;
constexpr int kStripeRows = 32, kStripeWidth = kWarpLanes * kColumns;
constexpr int kTileRows = kTileWarps * kStripeRows;
constexpr int kBlockWarps = 8;          // that share the roughness blocks of one part
constexpr int kMaxBlockParts = 1024;    // of an image
constexpr int kMergeThreads = 256;
constexpr int kMaxCodes = 256;

// Sums of (value - pivot) and of its square.
struct Sums {
    double pivot, count, sum, square_sum;
};

// What one lane knows of block means; in shared memory, as it is rarely touched and registers are short.
struct BlockMeans {
    double count, sum, square_sum;
};

struct Stripe {
    Sums pixels, blocks;
    std::int64_t nonfinite;
    std::int64_t unused;  // keeps the size a multiple of 16
};

// What the kernels are told, by value.
struct Task {
    const void* data;
    std::int64_t stride_image, stride_row, stride_column;
    int height, width, tiles_across, tiles_in_image;
    int quads_are_aligned;  // four pixels of a lane are one vector load
    int num_bins, code_words, include_flat;
    int block_size, stripes_hold_blocks, block_parts;
    Stripe* stripes;          // [image][tile][warp]
    std::uint32_t* counts;    // [image][tile][code], 4 * code_words codes
    Sums* block_sums;         // [image][part][warp], unless stripes_hold_blocks
    float* descriptors;       // [image][3]
    std::int64_t* nonfinite;  // [image]
    float slope[SlopeTable::kMaxSlopes];
};

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, offset);
    }
    return value;
}

__device__ __forceinline__ int clamped(int value, int last) { return max(0, min(value, last)); }

template <typename Pixel>
struct alignas(kColumns * sizeof(Pixel) < 16 ? kColumns * sizeof(Pixel) : 16) Quad {
    Pixel pixel[kColumns];
};

// One image; what lies outside repeats the border.
template <typename Pixel>
struct Reader {
    const Pixel* image;
    const Task& task;

    __device__ __forceinline__ Reader(const Task& its_task, std::int64_t index)
        : image(static_cast<const Pixel*>(its_task.data) + index * its_task.stride_image), task(its_task) {}

    __device__ __forceinline__ Pixel at(int y, int x) const {
        return image[y * task.stride_row + x * task.stride_column];
    }
    __device__ __forceinline__ Quad<Pixel> quad(int y, int x) const {
        const Pixel* row = image + clamped(y, task.height - 1) * task.stride_row;
        if (task.quads_are_aligned && x + kColumns <= task.width) {
            return *reinterpret_cast<const Quad<Pixel>*>(row + x);
        }
        Quad<Pixel> quad;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) quad.pixel[j] = row[min(x + j, task.width - 1) * task.stride_column];
        return quad;
    }
};

// X' of a lane's four columns and of the two beside them.
struct Row {
    float x[kColumns + 2];
    float across[kColumns];
};

template <typename Pixel>
__device__ __forceinline__ Row row_of(const Quad<Pixel>& quad, const float* beside, int lane) {
    Row row;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) row.x[j + 1] = log_magnitude(quad.pixel[j]);
    row.x[0] = __shfl_up_sync(kAllLanes, row.x[kColumns], 1);
    row.x[kColumns + 1] = __shfl_down_sync(kAllLanes, row.x[1], 1);
    if (lane == 0) row.x[0] = *beside;
    if (lane == kWarpLanes - 1) row.x[kColumns + 1] = *beside;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) row.across[j] = row.x[j + 2] - row.x[j];
    return row;
}

// The bin of a gradient, or num_bins where there is none. The slopes ascend, and so do the rounded products with u:
// halving the interval finds the number that comparing with each of them (as the CPU does, in vectors) counts.
template <bool kIsFolded>
__device__ __forceinline__ int direction_code(float g_x, float g_y, const Task& task) {
    if (kIsFolded) return bin_of_folded_code(folded_code(g_x, g_y, task.slope, true));
    const Turned turned = turn_to_first_quadrant(g_x, g_y);
    int reached = 0;
    for (int remaining = task.num_bins / 4 - 1; remaining > 0;) {
        const int half = (remaining + 1) / 2;
        const bool yes = reaches(turned.v, task.slope[reached + half - 1], turned.u);
        reached += yes ? half : 0;
        remaining = yes ? remaining - half : half - 1;
    }
    return turned.is_flat ? task.num_bins : turned.quarter * (task.num_bins / 4) + reached;
}

template <typename Pixel>
__device__ __forceinline__ int count_nonfinite(const Task& task, std::int64_t image, int first_row, int rows, int x,
                                            int columns) {
    const Reader<Pixel> reader(task, image);
    int bad = 0;
    for (int r = 0; r < rows; ++r) {
        for (int j = 0; j < columns; ++j) bad += !is_finite(reader.at(first_row + r, x + j));
    }
    return __reduce_add_sync(kAllLanes, bad);
}

// The statistics of one stripe; returns by lane 0's store. Each thread has byte counters of its own for the codes
// of its 128 pixels, four to a word in a column of `counters`, so that no two threads meet, in a bank or a word.
template <typename Pixel, bool kIsFolded>
__device__ __forceinline__ void read_stripe(const Task& task, std::int64_t image, int first_row, int first_column,
                                            float (*beside)[kStripeRows + 2], std::uint8_t* counters,
                                            BlockMeans* means, Stripe* stripe) {
    const int lane = threadIdx.x % kWarpLanes;
    const Reader<Pixel> reader(task, image);
    for (int i = lane; i < 2 * (kStripeRows + 2); i += kWarpLanes) {
        const int side = i / (kStripeRows + 2), row = i % (kStripeRows + 2);
        const int y = clamped(first_row - 1 + row, task.height - 1);
        const int x = clamped(side ? first_column + kStripeWidth : first_column - 1, task.width - 1);
        beside[side][row] = log_magnitude(reader.at(y, x));
    }
    __syncwarp();
    const float* my_beside = beside[lane / (kWarpLanes / 2)];

    const int rows = min(kStripeRows, task.height - first_row);
    const int x = first_column + lane * kColumns, columns = max(0, min(kColumns, task.width - x));
    const int block_lanes = task.block_size / kColumns, block_mask = task.block_size - 1;  // if blocks are held
    const bool leads_block = task.stripes_hold_blocks && (lane & (block_lanes - 1)) == 0 &&
                             x + task.block_size <= task.width;
    double sum = 0, square_sum = 0, block_sum = 0;
    *means = {};

    Quad<Pixel> quad = reader.quad(first_row + 1, x);
    Row up = row_of(reader.quad(first_row - 1, x), my_beside, lane);
    Row middle = row_of(reader.quad(first_row, x), my_beside + 1, lane);
    const double pivot = static_cast<double>(__shfl_sync(kAllLanes, middle.x[1], 0));
    for (int r = 0; r < rows; ++r) {
        const Quad<Pixel> next = reader.quad(first_row + r + 2, x);  // asked for a row ahead of its use
        const Row down = row_of(quad, my_beside + r + 2, lane);
        float below[kColumns + 2];
#pragma unroll
        for (int j = 0; j < kColumns + 2; ++j) below[j] = down.x[j] - up.x[j];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            const unsigned code = direction_code<kIsFolded>(smoothed(up.across[j], middle.across[j], down.across[j]),
                                                            smoothed(below[j], below[j + 1], below[j + 2]), task);
            if (j < columns) {
                counters[code / 4 * (4 * kTileThreads) + code % 4] += 1;
                const double d = static_cast<double>(middle.x[j + 1]) - pivot;
                block_sum += d;
                square_sum = fma(d, d, square_sum);
            }
        }
        if (task.stripes_hold_blocks && ((r + 1) & block_mask) == 0) {
            sum += block_sum;
            for (int offset = 1; offset < block_lanes; offset *= 2) {
                block_sum += __shfl_xor_sync(kAllLanes, block_sum, offset);
            }
            if (leads_block) {
                const double mean = block_sum / (task.block_size * task.block_size);
                means->count += 1;
                means->sum += mean;
                means->square_sum += mean * mean;
            }
            block_sum = 0;
        }
        up = middle;
        middle = down;
        quad = next;
    }
    sum = sum + block_sum;

    // X' of a pixel that is not finite is not either, and shows in the sum; they are counted only then.
    const bool suspicious = !(fabs(sum) <= DBL_MAX);
    std::int64_t nonfinite = 0;
    if (__any_sync(kAllLanes, suspicious)) {
        nonfinite = count_nonfinite<Pixel>(task, image, first_row, rows, x, columns);
    }
    sum = warp_sum(sum);
    square_sum = warp_sum(square_sum);
    const Sums blocks = {pivot, warp_sum(means->count), warp_sum(means->sum), warp_sum(means->square_sum)};
    if (lane == 0) {
        const double count = double(rows) * min(kStripeWidth, task.width - first_column);
        stripe->pixels = {pivot, count, sum, square_sum};
        stripe->blocks = blocks;
        stripe->nonfinite = nonfinite;
    }
}

// One tile of four stripes, one below the other, per block of threads. The bound leaves a thread 96 registers
// (128 for pixels of 8 bytes) with 20 (16) warps on a multiprocessor; a tighter one spills.
template <typename Pixel, bool kIsFolded>
__global__ void __launch_bounds__(kTileThreads, sizeof(Pixel) > 4 ? 4 : 5) stripes_kernel(const __grid_constant__ Task task) {
    extern __shared__ std::uint32_t counters[];  // [code_words][kTileThreads]
    __shared__ float beside[kTileWarps][2][kStripeRows + 2];
    __shared__ BlockMeans means[kTileThreads];
    const int thread = threadIdx.x, lane = thread % kWarpLanes, warp = thread / kWarpLanes;
    const unsigned image = blockIdx.x / task.tiles_in_image, tile = blockIdx.x % task.tiles_in_image;
    const int first_row = int(tile / task.tiles_across) * kTileRows + warp * kStripeRows;
    const int first_column = int(tile % task.tiles_across) * kStripeWidth;
    for (int word = 0; word < task.code_words; ++word) counters[word * kTileThreads + thread] = 0;
    Stripe* stripe = task.stripes + std::int64_t(blockIdx.x) * kTileWarps + warp;
    if (first_row < task.height) {
        read_stripe<Pixel, kIsFolded>(task, image, first_row, first_column, beside[warp],
                                    reinterpret_cast<std::uint8_t*>(counters + thread), &means[thread], stripe);
    } else if (lane == 0) {
        *stripe = Stripe{};
    }
    __syncthreads();
    // The tile has 2^14 pixels: two counts to a word do not overflow into each other.
    std::uint32_t* counts = task.counts + std::int64_t(blockIdx.x) * task.code_words * 4;
    for (int word = warp; word < task.code_words; word += kTileWarps) {
        std::uint32_t even = 0, odd = 0;
        for (int i = lane; i < kTileThreads; i += kWarpLanes) {
            const std::uint32_t four = counters[word * kTileThreads + i];
            even += four & 0x00ff00ffu;
            odd += (four >> 8) & 0x00ff00ffu;
        }
        even = __reduce_add_sync(kAllLanes, even);
        odd = __reduce_add_sync(kAllLanes, odd);
        const std::uint32_t pair = lane & 1 ? odd : even;
        if (lane < 4) counts[4 * word + lane] = lane & 2 ? pair >> 16 : pair & 0xffffu;
    }
}

// Block sizes that do not fit the stripes: the image is read a second time, a roughness block by a warp, or by
// eight warps where blocks are large and few.
template <typename Pixel>
__global__ void __launch_bounds__(kBlockWarps* kWarpLanes, 2) blocks_kernel(const __grid_constant__ Task task) {
    __shared__ double parts_of_sum[kBlockWarps];
    const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
    const unsigned image = blockIdx.x / task.block_parts, part = blockIdx.x % task.block_parts;
    const Reader<Pixel> reader(task, image);
    const int size = task.block_size;
    const std::int64_t across = task.width / size, blocks = across * (task.height / size);
    const std::int64_t first = blocks * part / task.block_parts, last = blocks * (part + 1) / task.block_parts;
    const bool alone = size < 2 * kWarpLanes;  // a warp has its block to itself
    double pivot = 0, count = 0, sum = 0, square_sum = 0;
    for (std::int64_t block = alone ? first + warp : first; block < last; block += alone ? kBlockWarps : 1) {
        const int top = int(block / across) * size, left = int(block % across) * size;
        double block_sum = 0;
        if (alone) {
            for (int i = lane; i < size * size; i += kWarpLanes) {
                block_sum += static_cast<double>(log_magnitude(reader.at(top + i / size, left + i % size)));
            }
            block_sum = warp_sum(block_sum);
        } else {
            for (int y = warp; y < size; y += kBlockWarps) {
                for (int x = lane; x < size; x += kWarpLanes) {
                    block_sum += static_cast<double>(log_magnitude(reader.at(top + y, left + x)));
                }
            }
            block_sum = warp_sum(block_sum);
            if (lane == 0) parts_of_sum[warp] = block_sum;
            __syncthreads();
            block_sum = 0;
            for (int i = 0; i < kBlockWarps; ++i) block_sum += parts_of_sum[i];
            __syncthreads();
        }
        const double mean = block_sum / (double(size) * size);
        if (count == 0) pivot = mean;
        const double d = mean - pivot;
        count += 1;
        sum += d;
        square_sum += d * d;
    }
    if (lane == 0) {
        Sums& result = task.block_sums[std::int64_t(blockIdx.x) * kBlockWarps + warp];
        result = {pivot, alone || warp == 0 ? count : 0.0, sum, square_sum};
    }
}

__device__ __forceinline__ Moments moments_of(const Sums& sums) {
    return Moments::from_sums(sums.count, sums.pivot, sums.sum, sums.square_sum);
}

// One block of threads per image: a slice of the stripes for each thread, then a tree, both in order.
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const __grid_constant__ Task task) {
    __shared__ Moments pixels[kMergeThreads], blocks[kMergeThreads];
    __shared__ unsigned long long counts[kMaxCodes], nonfinite, counted;
    __shared__ double parts[kMaxCodes];
    const int thread = threadIdx.x, lane = thread % kWarpLanes, warp = thread / kWarpLanes;
    const std::int64_t image = blockIdx.x, tiles = task.tiles_in_image;
    for (int code = thread; code < kMaxCodes; code += kMergeThreads) counts[code] = 0;
    if (thread == 0) nonfinite = counted = 0;
    __syncthreads();

    const std::int64_t stripes = tiles * kTileWarps, slice = (stripes + kMergeThreads - 1) / kMergeThreads;
    const Stripe* stripe = task.stripes + image * stripes;
    Moments my_pixels{}, my_blocks{};
    unsigned long long bad = 0;
    for (std::int64_t i = thread * slice; i < min((thread + 1) * slice, stripes); ++i) {
        my_pixels.merge(moments_of(stripe[i].pixels));
        if (task.stripes_hold_blocks) my_blocks.merge(moments_of(stripe[i].blocks));
        bad += stripe[i].nonfinite;
    }
    if (bad) atomicAdd(&nonfinite, bad);
    const std::int64_t sums = std::int64_t(task.block_parts) * kBlockWarps;
    const std::int64_t sums_slice = (sums + kMergeThreads - 1) / kMergeThreads;
    for (std::int64_t i = thread * sums_slice; i < min((thread + 1) * sums_slice, sums); ++i) {
        my_blocks.merge(moments_of(task.block_sums[image * sums + i]));
    }
    pixels[thread] = my_pixels;
    blocks[thread] = my_blocks;

    const std::uint32_t* tile_counts = task.counts + image * tiles * task.code_words * 4;
    for (int code = lane; code < task.code_words * 4; code += kWarpLanes) {
        unsigned long long count = 0;
#pragma unroll 8
        for (std::int64_t tile = warp; tile < tiles; tile += kMergeThreads / kWarpLanes) {
            count += tile_counts[tile * task.code_words * 4 + code];
        }
        // Flat ground has the angle 0, which opens bin N / 2.
        const int bin = code < task.num_bins ? code : task.num_bins / 2;
        if (code < task.num_bins || (code == task.num_bins && task.include_flat)) {
            atomicAdd(&counts[bin], count);
            atomicAdd(&counted, count);
        }
    }
    for (int reach = 1; reach < kMergeThreads; reach *= 2) {
        __syncthreads();
        if (thread % (2 * reach) == 0) {
            pixels[thread].merge(pixels[thread + reach]);
            blocks[thread].merge(blocks[thread + reach]);
        }
    }
    __syncthreads();
    if (thread < task.num_bins) {
        parts[thread] = counts[thread] ? entropy_part(double(counts[thread]), double(counted)) : 0.0;
    }
    __syncthreads();
    if (thread == 0) {
        double entropy = 0;
        for (int bin = 0; bin < task.num_bins; ++bin) entropy += parts[bin];
        float* descriptors = task.descriptors + image * kNumDescriptors;
        descriptors[0] = static_cast<float>(0.0 < entropy ? entropy : 0.0);
        descriptors[1] = static_cast<float>(number_of_looks(pixels[0]));
        descriptors[2] = static_cast<float>(blocks[0].variance());
        task.nonfinite[image] = static_cast<std::int64_t>(nonfinite);
    }
}

}  // namespace

}  // namespace crossearth
