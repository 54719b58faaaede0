// The CUDA half, on the host: how the work is cut, where it lies in the scratch, what is launched.

#include "descriptors_cuda.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "descriptors_kernels.cuh"

namespace crossearth {

namespace {

struct Layout {
    Task task;
    std::int64_t tiles, stripes_bytes, counts_bytes, block_sums_bytes;
};

Layout layout_of(const ImageBatch& batch, const DescriptorOptions& options) {
    constexpr std::int64_t kMaxSide = std::int64_t{1} << 30, kMaxTiles = 0x7fffffff;
    if (batch.height >= kMaxSide || batch.width >= kMaxSide) throw std::invalid_argument("image side of 2^30 or more");
    Layout layout{};
    Task& task = layout.task;
    task.height = int(batch.height);
    task.width = int(batch.width);
    task.tiles_across = (task.width + kStripeWidth - 1) / kStripeWidth;
    const std::int64_t tiles_in_image = std::int64_t(task.tiles_across) * ((task.height + kTileRows - 1) / kTileRows);
    task.block_size = options.block_size;
    task.stripes_hold_blocks = task.block_size == 4 || task.block_size == 8 || task.block_size == 16 ||
                               task.block_size == 32;
    if (!task.stripes_hold_blocks) {
        const std::int64_t blocks = (batch.height / task.block_size) * (batch.width / task.block_size);
        const int sharers = task.block_size < 2 * kWarpLanes ? kBlockWarps : 1;
        task.block_parts = int(std::min<std::int64_t>((blocks + sharers - 1) / sharers, kMaxBlockParts));
    }
    layout.tiles = batch.images * tiles_in_image;
    if (tiles_in_image > kMaxTiles || layout.tiles > kMaxTiles || batch.images > kMaxTiles / kMaxBlockParts) {
        throw std::invalid_argument("too many tiles in one batch");
    }
    task.tiles_in_image = int(tiles_in_image);
    task.num_bins = options.num_bins;
    task.code_words = options.num_bins / 4 + 1;
    task.include_flat = options.include_flat;
    layout.stripes_bytes = layout.tiles * kTileWarps * std::int64_t(sizeof(Stripe));
    layout.counts_bytes = layout.tiles * task.code_words * 4 * std::int64_t(sizeof(std::uint32_t));
    layout.block_sums_bytes = batch.images * task.block_parts * kBlockWarps * std::int64_t(sizeof(Sums));
    return layout;
}

void launch(void (*kernel)(Task), std::int64_t blocks, int threads, int shared_bytes, void* stream, const Task& task) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, task);
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string("descriptors on CUDA: ") + cudaGetErrorString(error));
    }
}

template <typename Pixel>
void launch_readers(Task task, std::int64_t images, std::int64_t tiles, void* stream) {
    using Vector = Quad<Pixel>;
    const auto aligned = [](std::int64_t elements) { return elements * sizeof(Pixel) % alignof(Vector) == 0; };
    task.quads_are_aligned = task.stride_column == 1 && aligned(task.stride_row) && aligned(task.stride_image) &&
                             reinterpret_cast<std::uintptr_t>(task.data) % alignof(Vector) == 0;
    const int shared_bytes = task.code_words * kTileThreads * int(sizeof(std::uint32_t));
    launch(task.num_bins == kFoldedBins ? stripes_kernel<Pixel, true> : stripes_kernel<Pixel, false>, tiles,
           kTileThreads, shared_bytes, stream, task);
    if (task.block_parts > 0) {
        launch(blocks_kernel<Pixel>, images * task.block_parts, kBlockWarps * kWarpLanes, 0, stream, task);
    }
}

}  // namespace

std::int64_t cuda_scratch_bytes(const ImageBatch& batch, const DescriptorOptions& options) {
    const Layout layout = layout_of(batch, options);
    return layout.stripes_bytes + layout.counts_bytes + layout.block_sums_bytes;
}

void describe_cuda(const ImageBatch& batch, const DescriptorOptions& options, void* scratch, void* stream,
                   float* descriptors, std::int64_t* nonfinite) {
    if (batch.images == 0) return;
    const Layout layout = layout_of(batch, options);
    Task task = layout.task;
    task.data = batch.data;
    task.stride_image = batch.stride_image;
    task.stride_row = batch.stride_row;
    task.stride_column = batch.stride_column;
    char* bytes = static_cast<char*>(scratch);
    task.stripes = reinterpret_cast<Stripe*>(bytes);
    task.counts = reinterpret_cast<std::uint32_t*>(bytes + layout.stripes_bytes);
    task.block_sums = reinterpret_cast<Sums*>(bytes + layout.stripes_bytes + layout.counts_bytes);
    task.descriptors = descriptors;
    task.nonfinite = nonfinite;
    const SlopeTable table(options.num_bins);
    std::copy(table.slope, table.slope + SlopeTable::kMaxSlopes, task.slope);
    const auto read = [&](auto pixel) {
        launch_readers<decltype(pixel)>(task, batch.images, layout.tiles, stream);
    };
    switch (batch.type) {
        case PixelType::kFloat32: read(float{}); break;
        case PixelType::kFloat64: read(double{}); break;
        case PixelType::kFloat16: read(Half{}); break;
        case PixelType::kBFloat16: read(BFloat{}); break;
        case PixelType::kUInt8: read(std::uint8_t{}); break;
        case PixelType::kUInt16: read(std::uint16_t{}); break;
        case PixelType::kInt16: read(std::int16_t{}); break;
        case PixelType::kInt32: read(std::int32_t{}); break;
        case PixelType::kComplex64: read(Complex{}); break;
    }
    launch(merge_kernel, batch.images, kMergeThreads, 0, stream, task);
}

int cuda_device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // forget it: a later call shall not report it
    return 0;
}

}  // namespace crossearth
