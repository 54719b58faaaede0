#include <algorithm>
#include <memory>
#include <vector>

#include "ffn_cpu.h"
#include "ffn_jobs.h"
#include "tasks.h"

namespace crossearth {

namespace {

class Forward {
   public:
    Forward(const RoutedRows& routed, const Experts& experts, const float* x, const float* gate,
            const FfnKernels& kernels, float* y, float* pre)
        : routed_(routed), experts_(experts), x_(x), gate_(gate), kernels_(kernels), y_(y), pre_(pre) {}

    void operator()(const Job& job) const {
        const std::int64_t dim = experts_.dim, hidden = experts_.hidden;
        const std::vector<Strip> strips = strips_of(job.count, kernels_);
        const std::int64_t columns = strips.back().start + strips.back().width;
        const std::unique_ptr<float[]> memory(new float[columns * (2 * dim + kHiddenBlock)]);
        float *const in = memory.get(), *const out = in + columns * dim, *const act = out + columns * dim;
        gather(job, strips, in);
        for (std::int64_t f = 0; f < hidden; f += kHiddenBlock) {
            const std::int64_t block = std::min(kHiddenBlock, hidden - f);
            up(job, strips, in, f, block, act);
            for (const Strip& strip : strips) activate(job, strip, f, block, act + strip.start * block);
            down(job, strips, act, f, block, out);
        }
        scatter(job, strips, out);
    }

   private:
    void gather(const Job& job, const std::vector<Strip>& strips, float* in) const {
        const float* rows[kWidestStrip];
        for (const Strip& strip : strips) {
            for (int r = 0; r < strip.count; ++r) {
                rows[r] = x_ + assignment_of(routed_, job.first + strip.start + r) / routed_.top_k * experts_.dim;
            }
            kernels_.gather(rows, strip.count, experts_.dim, strip.width, in + strip.start * experts_.dim);
        }
    }

    void up(const Job& job, const std::vector<Strip>& strips, const float* in, std::int64_t f, std::int64_t block,
            float* act) const {
        const std::int64_t dim = experts_.dim, unit = job.expert * experts_.hidden + f;
        for (std::int64_t d = 0; d < dim; d += kDepthBlock) {
            for (const Strip& strip : strips) {
                kernels_.multiply(experts_.w1 + unit * dim + d, dim, block,
                                  in + strip.start * dim + d * strip.width, std::min(kDepthBlock, dim - d),
                                  strip.width, d ? nullptr : experts_.b1 + unit, act + strip.start * block,
                                  strip.width);
            }
        }
    }

    void activate(const Job& job, const Strip& strip, std::int64_t f, std::int64_t block, float* act) const {
        if (pre_) {
            float* rows[kWidestStrip];
            for (int r = 0; r < strip.count; ++r) {
                rows[r] = pre_ + (job.first + strip.start + r) * experts_.hidden + f;
            }
            kernels_.scatter(act, strip.width, block, strip.count, nullptr, rows);
        }
        kernels_.gelu(act, block * strip.width);
    }

    void down(const Job& job, const std::vector<Strip>& strips, const float* act, std::int64_t f,
              std::int64_t block, float* out) const {
        const std::int64_t dim = experts_.dim, hidden = experts_.hidden;
        for (const Strip& strip : strips) {
            kernels_.multiply(experts_.w2 + job.expert * dim * hidden + f, hidden, dim, act + strip.start * block,
                              block, strip.width, f ? nullptr : experts_.b2 + job.expert * dim,
                              out + strip.start * dim, strip.width);
        }
    }

    void scatter(const Job& job, const std::vector<Strip>& strips, const float* out) const {
        float* rows[kWidestStrip];
        float gates[kWidestStrip];
        for (const Strip& strip : strips) {
            for (int r = 0; r < strip.count; ++r) {
                const std::int64_t to = assignment_of(routed_, job.first + strip.start + r);
                rows[r] = y_ + to * experts_.dim;
                gates[r] = gate_ ? gate_[to] : 1.0f;
            }
            kernels_.scatter(out + strip.start * experts_.dim, strip.width, experts_.dim, strip.count,
                             gate_ ? gates : nullptr, rows);
        }
    }

    const RoutedRows& routed_;
    const Experts& experts_;
    const float* const x_;
    const float* const gate_;
    const FfnKernels& kernels_;
    float* const y_;
    float* const pre_;
};

}  // namespace

void ffn_forward(const RoutedRows& routed, const Experts& experts, const float* x, const float* gate, int threads,
                 const FfnKernels& kernels, float* y, float* pre) {
    const std::vector<Job> jobs = jobs_of(routed, kernels.lanes * kernels.vectors, threads);
    const Forward forward(routed, experts, x, gate, kernels, y, pre);
    run_tasks(static_cast<std::int64_t>(jobs.size()), threads, [&](std::int64_t i) { forward(jobs[i]); });
}

}  // namespace crossearth
