// The descriptors of a batch of images: what the CPU and the CUDA half both offer. Pointers and sizes in,
// numbers out, std::invalid_argument or std::runtime_error for what cannot be done.

#pragma once

#include <cstdint>

#include "descriptor_math.h"

namespace crossearth {

// A batch of one-band images; strides in elements. The data lies where the half that is called computes.
struct ImageBatch {
    const void* data;
    PixelType type;
    std::int64_t images, height, width;
    std::int64_t stride_image, stride_row, stride_column;
};

struct DescriptorOptions {
    int num_bins;         // direction bins over [-pi, pi), divisible by 4, at most 252
    int block_size;       // pixels
    bool include_flat;    // count pixels without gradient at angle 0
};

struct MapOptions {
    int num_bins;         // as above
    int patch_size;       // pixels, a multiple of kBlocksPerSide
    bool include_flat;
};

constexpr int kBlocksPerSide = 4;   // a patch's roughness is that of 4 x 4 blocks in it
constexpr int kNumDescriptors = 3;  // entropy, looks, roughness

// descriptors: (images, 3) float; nonfinite: (images,) number of NaN or inf pixels. Up to `threads` threads;
// the bits do not depend on how many.
void describe_cpu(const ImageBatch& batch, const DescriptorOptions& options, int threads, float* descriptors,
                  std::int64_t* nonfinite);

// The same of every whole patch: map is (images, 3, height / patch_size, width / patch_size) float. Gradients are
// those of the whole image; nonfinite counts all its pixels, those outside the last patches too.
void describe_map_cpu(const ImageBatch& batch, const MapOptions& options, int threads, float* map,
                      std::int64_t* nonfinite);

}  // namespace crossearth
