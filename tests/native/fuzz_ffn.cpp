// The experts in C++ over random sizes and routings, under the sanitizers: against a plain loop in double, with
// the kernels of this processor and with those of a vector of sixteen made of two of eight, which drive the code as
// AVX-512 does. Outputs begin as NaN, and every array ends where its allocation does.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/ffn_cpu.h"

#pragma GCC target("avx2,fma")
#include "../../csrc/ffn_tiles.h"

using namespace crossearth;

namespace {

struct Wide {
    struct Reg {
        __m256 low, high;
    };
    static constexpr int kLanes = 16, kVectors = 3, kRows = 8;
    static Reg load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static void store(float* p, Reg v) { _mm256_storeu_ps(p, v.low), _mm256_storeu_ps(p + 8, v.high); }
    static Reg broadcast(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
    static Reg fma(Reg a, Reg b, Reg c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static Reg fms(Reg a, Reg b, Reg c) {
        return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
    }
    static Reg mul(Reg a, Reg b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    static Reg add(Reg a, Reg b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    static Reg sub(Reg a, Reg b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
    static Reg div(Reg a, Reg b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
    static Reg min(Reg a, Reg b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
    static Reg abs(Reg v) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, v.low), _mm256_andnot_ps(sign, v.high)};
    }
    static Reg round(Reg v) { return {_mm256_round_ps(v.low, 8), _mm256_round_ps(v.high, 8)}; }
    static Reg where_negative(Reg sign, Reg yes, Reg no) {
        return {_mm256_blendv_ps(no.low, yes.low, sign.low), _mm256_blendv_ps(no.high, yes.high, sign.high)};
    }
    static __m256 scaled(__m256 v, __m256 whole) {
        const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
        return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
    }
    static Reg times_power_of_two(Reg v, Reg whole) { return {scaled(v.low, whole.low), scaled(v.high, whole.high)}; }
};

std::mt19937 random_bits(1);

int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

std::vector<float> normal_of(std::size_t count, double scale = 1.0) {
    std::normal_distribution<double> draw(0.0, scale);
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(draw(random_bits));
    return values;
}

std::vector<float> unwritten(std::size_t count) {
    return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}

void require_close(const char* name, const std::vector<float>& got, const std::vector<double>& expected) {
    double error = 0.0, size = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        error += (got[i] - expected[i]) * (got[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    if (!(std::sqrt(error) <= 2e-6 * std::sqrt(size) + 1e-12)) {
        std::printf("%s: off by %g of %g\n", name, std::sqrt(error), std::sqrt(size));
        std::exit(1);
    }
}

void round_with(const FfnKernels& kernels) {
    const int experts = pick(1, 4), top_k = pick(1, 2), tokens = pick(0, 60) * pick(0, 12);
    const int dim = 16 * pick(1, 5), hidden = 16 * pick(1, 15), rows = tokens * top_k;
    std::vector<std::int32_t> offsets(1, 0);
    for (int e = 1; e < experts; ++e) offsets.push_back(pick(0, 3) ? pick(offsets.back(), rows) : offsets.back());
    offsets.push_back(rows);
    std::vector<std::int64_t> source(rows);
    for (int i = 0; i < rows; ++i) source[i] = i;
    std::shuffle(source.begin(), source.end(), random_bits);
    const bool gated = pick(0, 1), wants_weights = pick(0, 3);
    const auto w1 = normal_of(experts * hidden * dim, 1 / std::sqrt(dim)), b1 = normal_of(experts * hidden);
    const auto w2 = normal_of(experts * dim * hidden, 1 / std::sqrt(hidden)), b2 = normal_of(experts * dim);
    const auto x = normal_of(tokens * dim), dy = normal_of(tokens * dim), gate = normal_of(rows);
    const RoutedRows routed{source.data(), offsets.data(), experts, top_k};
    const Experts weights{w1.data(), b1.data(), w2.data(), b2.data(), dim, hidden};
    auto y = unwritten(rows * dim), pre = unwritten(rows * hidden), dx = unwritten(rows * dim);
    auto dgate = unwritten(rows), dw1 = unwritten(w1.size()), db1 = unwritten(b1.size());
    auto dw2 = unwritten(w2.size()), db2 = unwritten(b2.size());
    const float* const gates = gated ? gate.data() : nullptr;
    ffn_forward(routed, weights, x.data(), gates, pick(1, 3), kernels, y.data(), pre.data());
    FfnGradients to{dx.data(), gated ? dgate.data() : nullptr, nullptr, nullptr, nullptr, nullptr};
    if (wants_weights) to.dw1 = dw1.data(), to.db1 = db1.data(), to.dw2 = dw2.data(), to.db2 = db2.data();
    ffn_backward(routed, weights, dy.data(), x.data(), pre.data(), gates, pick(1, 3), kernels, to);

    std::vector<double> y_(rows * dim), pre_(rows * hidden), dx_(rows * dim), dgate_(gated ? rows : 0);
    std::vector<double> dw1_(w1.size()), db1_(b1.size()), dw2_(w2.size()), db2_(b2.size());
    for (int e = 0; e < experts; ++e) {
        for (int n = offsets[e]; n < offsets[e + 1]; ++n) {
            const std::int64_t a = source[n], t = a / top_k;
            const double g = gated ? gate[a] : 1.0;
            for (int d = 0; d < dim; ++d) {
                y_[a * dim + d] = g * b2[e * dim + d];
                db2_[e * dim + d] += g * dy[t * dim + d];
                if (gated) dgate_[a] += double(dy[t * dim + d]) * b2[e * dim + d];
            }
            for (int f = 0; f < hidden; ++f) {
                const int unit = e * hidden + f;
                double p = b1[unit], dact = 0.0;
                for (int d = 0; d < dim; ++d) p += double(w1[unit * dim + d]) * x[t * dim + d];
                const double phi = 0.5 * std::erfc(-p / std::sqrt(2.0)), act = p * phi;
                for (int d = 0; d < dim; ++d) {
                    const int at = (e * dim + d) * hidden + f;
                    y_[a * dim + d] += g * w2[at] * act;
                    dact += double(w2[at]) * dy[t * dim + d];
                    dw2_[at] += g * dy[t * dim + d] * act;
                }
                const double dpre = g * dact * (phi + p * std::exp(-p * p / 2) / std::sqrt(2 * M_PI));
                if (gated) dgate_[a] += dact * act;
                pre_[n * hidden + f] = p;
                db1_[unit] += dpre;
                for (int d = 0; d < dim; ++d) {
                    dx_[a * dim + d] += dpre * w1[unit * dim + d];
                    dw1_[unit * dim + d] += dpre * x[t * dim + d];
                }
            }
        }
    }
    require_close("y", y, y_), require_close("pre", pre, pre_), require_close("dx", dx, dx_);
    require_close("dgate", dgate, dgate_);
    if (!wants_weights) return;
    require_close("dw1", dw1, dw1_), require_close("db1", db1, db1_);
    require_close("dw2", dw2, dw2_), require_close("db2", db2, db2_);
}

}  // namespace

int main(int, char** arguments) {
    std::vector<const FfnKernels*> all{ffn_kernels_avx2(), ffn_kernels_avx512()};
    if (ffn_kernels_avx2()) all.push_back(&kernels_of<Wide>);
    const int rounds = std::atoi(arguments[1]);
    for (int i = 0; i < rounds; ++i) {
        for (const FfnKernels* kernels : all) {
            if (kernels) round_with(*kernels);
        }
    }
    std::printf("%d rounds\n", rounds);
}
