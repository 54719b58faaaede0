// The experts' FFN over routed rows on a CPU, in float32: y = act(x w1^T + b1) w2^T + b2, act the GELU by erf.
//
// T tokens, N = T * K routed rows, A = T * K assignments, D dim, F hidden, E experts.

#pragma once

#include <cstdint>

#include "ffn_kernels.h"

namespace crossearth {

// Rows grouped by expert: those of e are offsets[e] .. offsets[e + 1], (E + 1) of them. Row n is assignment
// source[n] of token source[n] / top_k; source null is n of token n, with top_k 1.
struct RoutedRows {
    const std::int64_t* source;
    const std::int32_t* offsets;
    std::int64_t experts;
    std::int64_t top_k;
};

// w1 (E, F, D), b1 (E, F), w2 (E, D, F), b2 (E, D).
struct Experts {
    const float* w1;
    const float* b1;
    const float* w2;
    const float* b2;
    std::int64_t dim;
    std::int64_t hidden;
};

// From x (T, D) and gate (A) or null to y (A, D), each assignment's output times its gate; and, unless null, pre
// (N, F), what the activation was given.
void ffn_forward(const RoutedRows& routed, const Experts& experts, const float* x, const float* gate, int threads,
                 const FfnKernels& kernels, float* y, float* pre);

// dw1, db1, dw2, db2 are null where they are not wanted; dgate without a gate.
struct FfnGradients {
    float* dx;     // (A, D)
    float* dgate;  // (A)
    float* dw1;
    float* db1;
    float* dw2;
    float* db2;
};

// From dy (T, D) and what ffn_forward was given and left in pre.
void ffn_backward(const RoutedRows& routed, const Experts& experts, const float* dy, const float* x,
                  const float* pre, const float* gate, int threads, const FfnKernels& kernels,
                  const FfnGradients& gradients);

}  // namespace crossearth
