// The CPU half: each image is cut into bands of rows, each band read once, in any order by any thread; what
// the bands found is merged in order, so that the result does not depend on the threads.

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <vector>

#include "descriptors.h"
#include "row_kernels.h"

namespace crossearth {

namespace {

struct Band {
    Moments pixels{}, blocks{};
    std::int64_t nonfinite = 0;
    std::vector<std::int64_t> codes;
};

constexpr std::int64_t kBandPixels = 1 << 16;  // about: enough to be worth a task, small enough to share out

class BandReader {
   public:
    BandReader(const ImageBatch& batch, const DescriptorOptions& options, std::int64_t image)
        : batch_(batch), options_(options), table_(options.num_bins), image_(image), width_(batch.width),
          codes_(width_), sums_(width_), squares_(width_), block_sums_(width_ / options.block_size) {
        for (auto& row : rows_) row.resize(width_ + 2);
    }

    Band read(std::int64_t first_row, std::int64_t last_row) {
        Band band;
        CodeCounts counts;
        float *up = rows_[0].data(), *middle = rows_[1].data(), *down = rows_[2].data();
        load(std::max<std::int64_t>(first_row - 1, 0), up);
        band.nonfinite += load(first_row, middle);
        pivot_ = std::accumulate(middle + 1, middle + 1 + width_, 0.0) / width_;
        std::vector<double> block_deviations;
        int rows_in_float = 0;
        for (std::int64_t y = first_row; y < last_row; ++y) {
            const std::int64_t bad = load(std::min(y + 1, batch_.height - 1), down);
            if (y + 1 < last_row) band.nonfinite += bad;
            direction_codes(up, middle, down, width_, table_, codes_.data());
            counts.add(codes_.data(), width_);
            add_deviations(middle + 1, width_, pivot_, sums_.data(), squares_.data());
            const bool block_row_ends = (y + 1) % options_.block_size == 0;
            if (++rows_in_float == kRowsInFloat || block_row_ends || y + 1 == last_row) {
                empty_floats();
                rows_in_float = 0;
            }
            if (block_row_ends) close_block_row(&block_deviations);
            float* oldest = up;
            up = middle;
            middle = down;
            down = oldest;
        }
        band.pixels = Moments::from_sums(double(last_row - first_row) * width_, pivot_, sum_, square_sum_);
        band.blocks = moments_of(block_deviations);
        band.codes.resize(options_.num_bins + 1);
        for (int code = 0; code <= options_.num_bins; ++code) band.codes[code] = counts.of(code);
        return band;
    }

   private:
    std::int64_t load(std::int64_t y, float* row) const {
        const std::int64_t offset = image_ * batch_.stride_image + y * batch_.stride_row;
        const auto* start = static_cast<const char*>(batch_.data) + offset * pixel_bytes(batch_.type);
        const std::int64_t bad = log_row(batch_.type, start, batch_.stride_column, width_, row + 1);
        row[0] = row[1];
        row[width_ + 1] = row[width_];
        return bad;
    }

    // The column sums into the blocks' and the band's, in double.
    void empty_floats() {
        const std::int64_t block = options_.block_size, whole = std::int64_t(block_sums_.size()) * block;
        for (std::int64_t x = 0; x < width_; ++x) {
            if (x < whole) block_sums_[x / block] += sums_[x];
            sum_ += sums_[x];
            square_sum_ += squares_[x];
        }
        std::fill(sums_.begin(), sums_.end(), 0.0f);
        std::fill(squares_.begin(), squares_.end(), 0.0f);
    }

    void close_block_row(std::vector<double>* deviations) {
        const double area = double(options_.block_size) * options_.block_size;
        for (double& block_sum : block_sums_) {
            deviations->push_back(block_sum / area);
            block_sum = 0;
        }
    }

    Moments moments_of(const std::vector<double>& deviations) const {
        double sum = 0, square_sum = 0;
        for (const double d : deviations) {
            sum += d;
            square_sum += d * d;
        }
        return Moments::from_sums(double(deviations.size()), pivot_, sum, square_sum);
    }

    const ImageBatch& batch_;
    const DescriptorOptions& options_;
    const SlopeTable table_;
    const std::int64_t image_, width_;
    std::vector<float> rows_[3];
    std::vector<std::uint8_t> codes_;
    std::vector<float> sums_, squares_;  // of deviations from the pivot, a column each
    std::vector<double> block_sums_;
    double sum_ = 0, square_sum_ = 0;
    float pivot_ = 0;  // near the band's mean, so that squares do not cancel
};

double entropy(std::vector<std::int64_t> codes, int num_bins, bool include_flat) {
    if (include_flat) codes[num_bins / 2] += codes[num_bins];  // angle 0 opens bin N / 2
    codes.pop_back();
    double total = 0, sum = 0;
    for (const std::int64_t count : codes) total += double(count);
    for (const std::int64_t count : codes) {
        if (count > 0) sum += entropy_part(double(count), total);
    }
    return std::max(sum, 0.0);
}

void finish(const std::vector<Band>& bands, std::size_t first, std::size_t last,
            const DescriptorOptions& options, float* descriptors, std::int64_t* nonfinite) {
    Moments pixels{}, blocks{};
    std::vector<std::int64_t> codes(options.num_bins + 1, 0);
    *nonfinite = 0;
    for (std::size_t i = first; i < last; ++i) {
        pixels.merge(bands[i].pixels);
        blocks.merge(bands[i].blocks);
        *nonfinite += bands[i].nonfinite;
        for (std::size_t c = 0; c < codes.size(); ++c) codes[c] += bands[i].codes[c];
    }
    descriptors[0] = float(entropy(codes, options.num_bins, options.include_flat));
    descriptors[1] = float(number_of_looks(pixels));
    descriptors[2] = float(blocks.variance());
}

// Runs task(0) … task(count - 1) on up to `threads` threads; the first exception is thrown on. OpenMP, because
// torch's threads are OpenMP's too: one pool, instead of a second one that the first one's waiting threads
// keep from the processors.
template <typename Task>
void run_tasks(std::int64_t count, int threads, const Task& task) {
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t i = 0; i < count; ++i) {
        try {
            task(i);
        } catch (...) {
#pragma omp critical
            if (!failure) failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace

void describe_cpu(const ImageBatch& batch, const DescriptorOptions& options, int threads, float* descriptors,
                  std::int64_t* nonfinite) {
    // Bands start at whole blocks, so that no block lies in two of them.
    const std::int64_t block = std::min<std::int64_t>(options.block_size, batch.height);
    const std::int64_t blocks_in_band = std::max<std::int64_t>(1, kBandPixels / (batch.width * block));
    const std::int64_t band_rows = blocks_in_band * block;
    const std::int64_t bands_in_image = (batch.height + band_rows - 1) / band_rows;
    std::vector<Band> bands(batch.images * bands_in_image);
    run_tasks(std::int64_t(bands.size()), threads, [&](std::int64_t task) {
        const std::int64_t image = task / bands_in_image, first = task % bands_in_image * band_rows;
        BandReader reader(batch, options, image);
        bands[task] = reader.read(first, std::min(first + band_rows, batch.height));
    });
    for (std::int64_t image = 0; image < batch.images; ++image) {
        finish(bands, image * bands_in_image, (image + 1) * bands_in_image, options,
               descriptors + image * kNumDescriptors, nonfinite + image);
    }
}

}  // namespace crossearth
