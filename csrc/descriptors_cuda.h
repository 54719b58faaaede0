// The CUDA half. Plain runtime API: no torch, no cuda header needed to include this.

#pragma once

#include <cstdint>

#include "descriptors.h"

namespace crossearth {

// Bytes of device memory that describe_cuda works in, 16-byte aligned. It need not be cleared, and holds nothing
// from one call to the next.
std::int64_t cuda_scratch_bytes(const ImageBatch& batch, const DescriptorOptions& options);

// As describe_cpu, with all pointers on the current device, asynchronous on `stream` (a cudaStream_t): no
// allocation, no synchronisation, only kernel launches, so that a CUDA graph can capture it. Bitwise the same
// result every time. Limits: height and width below 2^30, 2^31 tiles of 128 x 128 pixels; throws
// std::invalid_argument beyond, std::runtime_error when a launch fails.
void describe_cuda(const ImageBatch& batch, const DescriptorOptions& options, void* scratch, void* stream,
                   float* descriptors, std::int64_t* nonfinite);

// 0 where there is no driver; never throws.
int cuda_device_count();

}  // namespace crossearth
