// The scale-free descriptors on the CPU: formulas in docs/METHOD.md, their torch form in descriptors/scale_free.py,
// whose constants these are.

#pragma once

#include <cstdint>

#include "descriptors.h"

namespace crossearth {

constexpr int kNumScaleFree = 4;        // direction entropy, looks, correlation, variation
constexpr int kScaleFreeBlock = 8;      // pixels a side of the blocks whose median speaks for an image
constexpr int kMinPatch = 4;
constexpr int kDirectionBins = 8;       // of lines, centred on the axes and the diagonals
constexpr double kSmallest = 1e-15;     // share of the largest intensity below which there is none
constexpr double kLeastSpread = 1e-3;   // relative variance of what counts as constant
constexpr double kDeviations = 2.5, kGradientVariance = 3.0 / 64, kPrior = 0.02;

// descriptors: (images, 4) float; map: (images, 4, height / patch_size, width / patch_size) float, not touched where
// patch_size is 0; nonfinite: (images,). An image with a pixel that is NaN or inf is NaN throughout. Up to `threads`
// threads; the bits do not depend on how many.
void describe_scale_free_cpu(const ImageBatch& batch, int patch_size, int threads, float* descriptors, float* map,
                             std::int64_t* nonfinite);

}  // namespace crossearth
