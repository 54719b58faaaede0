#include <algorithm>
#include <memory>
#include <vector>

#include "ffn_cpu.h"
#include "ffn_jobs.h"
#include "tasks.h"

namespace crossearth {

namespace {

// Rows of an expert that a block of hidden units meets at a time; they are the depth of the products for the
// weights.
struct RowBlock {
    std::int64_t first, count;
    std::int64_t padded_first;  // with every block rounded up to whole vectors
};
constexpr std::int64_t kRowBlock = kDepthBlock;

// What the three phases of one backward share. Strips of tokens lie where their block's rows begin.
struct Backward {
    Backward(const RoutedRows& routed_rows, const Experts& of, const FfnKernels& inner_loops, const FfnGradients& out)
        : routed(routed_rows), experts(of), kernels(inner_loops), to(out), rows(routed.offsets[routed.experts]) {
        std::int64_t padded = 0;
        for (std::int64_t e = 0; e < routed.experts; ++e) {
            first_block.push_back(static_cast<std::int64_t>(blocks.size()));
            for (std::int64_t row = routed.offsets[e]; row < routed.offsets[e + 1]; row += kRowBlock) {
                blocks.push_back({row, std::min<std::int64_t>(kRowBlock, routed.offsets[e + 1] - row), padded});
                padded += round_up(blocks.back().count, kernels.lanes);
            }
        }
        first_block.push_back(static_cast<std::int64_t>(blocks.size()));
        dy_by_token.reset(new float[padded * experts.dim]);
        if (to.dw1) {
            x_by_dim.reset(new float[rows * experts.dim]);
            dy_by_dim.reset(new float[rows * experts.dim]);
        }
        dpre.reset(new float[rows * experts.hidden]);
        dgate_parts.reset(new float[rows * hidden_blocks()]);
    }

    std::int64_t hidden_blocks() const { return (experts.hidden + kHiddenBlock - 1) / kHiddenBlock; }

    const RoutedRows& routed;
    const Experts& experts;
    const FfnKernels& kernels;
    const FfnGradients& to;
    const std::int64_t rows;
    const float *dy = nullptr, *x = nullptr, *pre = nullptr, *gate = nullptr;
    std::vector<RowBlock> blocks;
    std::vector<std::int64_t> first_block;  // of each expert
    std::unique_ptr<float[]> dy_by_token;   // strips of tokens, D deep
    std::unique_ptr<float[]> x_by_dim;      // strips of D, tokens deep
    std::unique_ptr<float[]> dy_by_dim;     // the same of gate * dy
    std::unique_ptr<float[]> dpre;          // (N, F)
    std::unique_ptr<float[]> dgate_parts;   // (hidden blocks, N)
};

// First phase: a block's tokens into strips.
void gather_tokens(const Backward& call, const RowBlock& block) {
    const std::int64_t dim = call.experts.dim;
    const float *x[kRowBlock], *dy[kRowBlock];
    float gates[kRowBlock];
    for (std::int64_t r = 0; r < block.count; ++r) {
        const std::int64_t from = assignment_of(call.routed, block.first + r);
        x[r] = call.x + from / call.routed.top_k * dim;
        dy[r] = call.dy + from / call.routed.top_k * dim;
        gates[r] = call.gate ? call.gate[from] : 1.0f;
    }
    for (const Strip& strip : strips_of(block.count, call.kernels)) {
        call.kernels.gather(dy + strip.start, strip.count, dim, strip.width,
                            call.dy_by_token.get() + (block.padded_first + strip.start) * dim);
    }
    if (!call.to.dw1) return;
    call.kernels.pack(x, block.count, dim, nullptr, call.x_by_dim.get() + block.first * dim);
    call.kernels.pack(dy, block.count, dim, call.gate ? gates : nullptr, call.dy_by_dim.get() + block.first * dim);
}

// Second phase: a block of one expert's hidden units over all its rows; dpre, and the weights' gradients. Hidden
// units are rows of its panels, tokens their columns.
class HiddenBlock {
   public:
    HiddenBlock(const Backward& call, std::int64_t expert, std::int64_t number)
        : call_(call),
          k_(call.kernels),
          expert_(expert),
          number_(number),
          dim_(call.experts.dim),
          hidden_(call.experts.hidden),
          first_(number * kHiddenBlock),
          units_(std::min(kHiddenBlock, hidden_ - first_)) {
        const std::int64_t most = kRowBlock + kWidestStrip;
        memory_.reset(new float[2 * units_ * dim_ + 2 * most * units_ + 3 * most]);
        float* at = memory_.get();
        const auto take = [&](std::int64_t count) { return at += count, at - count; };
        w2_ = take(units_ * dim_), dw2_ = take(units_ * dim_);
        act_ = take(most * units_), dpre_ = take(most * units_);
        zeros_ = take(most), gates_ = take(most), dgate_ = take(most);
        std::fill_n(zeros_, most, 0.0f);
    }

    void run() {
        const std::int64_t begin = call_.first_block[expert_], end = call_.first_block[expert_ + 1];
        if (begin == end) return clear();
        const int width = static_cast<int>(dim_);
        std::vector<const float*> w2(dim_);
        std::vector<float*> dw2(dim_);
        for (std::int64_t d = 0; d < dim_; ++d) {
            const std::int64_t at = (expert_ * dim_ + d) * hidden_ + first_;
            w2[d] = call_.experts.w2 + at;
            dw2[d] = call_.to.dw2 + at;
        }
        k_.gather(w2.data(), width, units_, width, w2_);
        for (std::int64_t b = begin; b < end; ++b) {
            pre_gradient(call_.blocks[b]);
            if (call_.to.dw1) weight_gradients(call_.blocks[b], b == begin);
        }
        if (call_.to.dw1) k_.scatter(dw2_, width, units_, width, nullptr, dw2.data());
    }

   private:
    std::int64_t unit() const { return expert_ * hidden_ + first_; }

    void clear() {
        if (!call_.to.dw1) return;
        std::fill_n(call_.to.dw1 + unit() * dim_, units_ * dim_, 0.0f);
        std::fill_n(call_.to.db1 + unit(), units_, 0.0f);
        for (std::int64_t d = 0; d < dim_; ++d) {
            std::fill_n(call_.to.dw2 + (expert_ * dim_ + d) * hidden_ + first_, units_, 0.0f);
        }
        if (number_ == 0) std::fill_n(call_.to.db2 + expert_ * dim_, dim_, 0.0f);
    }

    void pre_gradient(const RowBlock& block) {
        const std::int64_t columns = round_up(block.count, k_.lanes);
        for (std::int64_t d = 0; d < dim_; d += kDepthBlock) {
            for (const Strip& strip : strips_of(block.count, k_)) {
                const float* const dy = call_.dy_by_token.get() + (block.padded_first + strip.start) * dim_;
                k_.multiply(w2_ + d, dim_, units_, dy + d * strip.width, std::min(kDepthBlock, dim_ - d), strip.width,
                            d ? nullptr : zeros_, dpre_ + strip.start, columns);
            }
        }
        start_gates(block, columns);
        const float* pre[kRowBlock];
        float* dpre[kRowBlock];
        for (std::int64_t r = 0; r < block.count; ++r) {
            pre[r] = call_.pre + (block.first + r) * hidden_ + first_;
            dpre[r] = call_.dpre.get() + (block.first + r) * hidden_ + first_;
        }
        const int count = static_cast<int>(block.count), width = static_cast<int>(columns);
        k_.gather(pre, count, units_, width, act_);
        for (std::int64_t f = 0; f < units_; ++f) {
            k_.gelu_backward(act_ + f * columns, dpre_ + f * columns, gates_, dgate_, columns);
        }
        k_.scatter(dpre_, width, units_, count, nullptr, dpre);
        std::copy_n(dgate_, block.count, call_.dgate_parts.get() + number_ * call_.rows + block.first);
    }

    // dgate = dy . (act w2^T + b2): the first block of units begins with the part of b2.
    void start_gates(const RowBlock& block, std::int64_t columns) {
        std::fill_n(gates_, columns, 1.0f);
        std::fill_n(dgate_, columns, 0.0f);
        if (!call_.gate) return;
        const float* const b2 = call_.experts.b2 + expert_ * dim_;
        for (std::int64_t r = 0; r < block.count; ++r) {
            const std::int64_t from = assignment_of(call_.routed, block.first + r);
            const float* const dy = call_.dy + from / call_.routed.top_k * dim_;
            gates_[r] = call_.gate[from];
            for (std::int64_t d = 0; number_ == 0 && d < dim_; ++d) dgate_[r] += dy[d] * b2[d];
        }
    }

    void weight_gradients(const RowBlock& block, bool is_first) {
        const std::int64_t columns = round_up(block.count, k_.lanes);
        const float* const start = is_first ? zeros_ : nullptr;
        for (const Strip& strip : strips_of(dim_, k_)) {
            const std::int64_t at = block.first * dim_ + strip.start * block.count;
            k_.multiply(dpre_, columns, units_, call_.x_by_dim.get() + at, block.count, strip.width, start,
                        call_.to.dw1 + unit() * dim_ + strip.start, dim_);
            k_.multiply(act_, columns, units_, call_.dy_by_dim.get() + at, block.count, strip.width, start,
                        dw2_ + strip.start, dim_);
            if (number_ == 0) add_db2(strip, call_.dy_by_dim.get() + at, block.count, is_first);
        }
        for (std::int64_t f = 0; f < units_; ++f) {
            float* const to = call_.to.db1 + unit() + f;
            *to = (is_first ? 0.0f : *to) + k_.sum(dpre_ + f * columns, block.count);
        }
    }

    void add_db2(const Strip& strip, const float* dy, std::int64_t count, bool is_first) {
        float* const to = call_.to.db2 + expert_ * dim_ + strip.start;
        if (is_first) std::fill_n(to, strip.width, 0.0f);
        for (std::int64_t r = 0; r < count; ++r) {
            for (int d = 0; d < strip.width; ++d) to[d] += dy[r * strip.width + d];
        }
    }

    const Backward& call_;
    const FfnKernels& k_;
    const std::int64_t expert_, number_, dim_, hidden_, first_, units_;
    std::unique_ptr<float[]> memory_;
    float *w2_, *dw2_, *act_, *dpre_, *zeros_, *gates_, *dgate_;
};

// Third phase: dx = dpre w1 of a job's rows, tokens being rows here; and their dgate.
void token_gradients(const Backward& call, const Job& job) {
    const std::int64_t dim = call.experts.dim, hidden = call.experts.hidden;
    const std::unique_ptr<float[]> memory(new float[job.count * (dim + 1) + kDepthBlock * dim]);
    float *const dx = memory.get(), *const strips = dx + job.count * dim, *const zeros = strips + kDepthBlock * dim;
    std::fill_n(zeros, job.count, 0.0f);
    for (std::int64_t f = 0; f < hidden; f += kDepthBlock) {
        const std::int64_t depth = std::min(kDepthBlock, hidden - f);
        const float* w1[kDepthBlock];
        for (std::int64_t i = 0; i < depth; ++i) w1[i] = call.experts.w1 + (job.expert * hidden + f + i) * dim;
        call.kernels.pack(w1, depth, dim, nullptr, strips);
        for (const Strip& strip : strips_of(dim, call.kernels)) {
            call.kernels.multiply(call.dpre.get() + job.first * hidden + f, hidden, job.count,
                                  strips + strip.start * depth, depth, strip.width, f ? nullptr : zeros,
                                  dx + strip.start, dim);
        }
    }
    for (std::int64_t r = 0; r < job.count; ++r) {
        const std::int64_t to = assignment_of(call.routed, job.first + r);
        std::copy_n(dx + r * dim, dim, call.to.dx + to * dim);
        if (!call.gate) continue;
        float sum = 0.0f;
        for (std::int64_t b = 0; b < call.hidden_blocks(); ++b) sum += call.dgate_parts[b * call.rows + job.first + r];
        call.to.dgate[to] = sum;
    }
}

}  // namespace

void ffn_backward(const RoutedRows& routed, const Experts& experts, const float* dy, const float* x,
                  const float* pre, const float* gate, int threads, const FfnKernels& kernels,
                  const FfnGradients& gradients) {
    Backward call(routed, experts, kernels, gradients);
    call.dy = dy, call.x = x, call.pre = pre, call.gate = gate;
    run_tasks(static_cast<std::int64_t>(call.blocks.size()), threads,
              [&](std::int64_t i) { gather_tokens(call, call.blocks[i]); });
    const std::int64_t parts = call.hidden_blocks();
    run_tasks(routed.experts * parts, threads,
              [&](std::int64_t i) { HiddenBlock(call, i / parts, i % parts).run(); });
    const std::vector<Job> jobs = jobs_of(routed, kernels.lanes * kernels.vectors, threads);
    run_tasks(static_cast<std::int64_t>(jobs.size()), threads,
              [&](std::int64_t i) { token_gradients(call, jobs[i]); });
}

}  // namespace crossearth
