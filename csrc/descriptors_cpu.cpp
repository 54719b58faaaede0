// The CPU half: each image is cut into bands of rows, each band read once, in any order by any thread; what
// the bands found is merged in order, so that the result does not depend on the threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <thread>
#include <vector>

#include "descriptors.h"
#include "row_kernels.h"

namespace crossearth {

namespace {

// Count, mean and sum of squared deviations; two of them merge without cancellation (Chan et al.).
struct Moments {
    double count = 0, mean = 0, m2 = 0;

    static Moments from_sums(double count, double pivot, double sum, double square_sum) {
        if (count == 0) return {};
        const double shift = sum / count;
        return {count, pivot + shift, std::max(0.0, square_sum - sum * shift)};
    }
    void merge(const Moments& other) {
        if (other.count == 0) return;
        const double total = count + other.count, delta = other.mean - mean;
        mean += delta * other.count / total;
        m2 += other.m2 + delta * delta * count * other.count / total;
        count = total;
    }
    double variance() const { return count > 0 ? m2 / count : 0.0; }
};

struct Band {
    Moments pixels, blocks;
    std::int64_t nonfinite = 0;
    std::vector<std::uint32_t> codes;
};

constexpr std::int64_t kBandPixels = 1 << 16;  // about: enough to be worth a task, small enough to share out

class BandReader {
   public:
    BandReader(const ImageBatch& batch, const DescriptorOptions& options, std::int64_t image)
        : batch_(batch), options_(options), table_(options.num_bins), image_(image), width_(batch.width) {
        for (auto& row : rows_) row.resize(width_ + 2);
        codes_.resize(width_);
        block_sums_.resize(width_ / options.block_size);
    }

    Band read(std::int64_t first_row, std::int64_t last_row) {
        Band band;
        band.codes.assign(options_.num_bins + 1, 0);
        float *up = rows_[0].data(), *middle = rows_[1].data(), *down = rows_[2].data();
        load(std::max<std::int64_t>(first_row - 1, 0), up);
        band.nonfinite += load(first_row, middle);
        const float pivot = middle[1];
        double sum = 0, square_sum = 0;
        std::vector<double> block_means;
        std::fill(block_sums_.begin(), block_sums_.end(), 0.0);
        for (std::int64_t y = first_row; y < last_row; ++y) {
            const std::int64_t below = std::min(y + 1, batch_.height - 1);
            const std::int64_t bad = load(below, down);
            if (y + 1 < last_row) band.nonfinite += bad;
            direction_codes(up, middle, down, width_, table_, codes_.data());
            count_codes(codes_.data(), width_, options_.num_bins + 1, band.codes.data());
            add_row(middle + 1, pivot, &sum, &square_sum);
            if ((y + 1) % options_.block_size == 0) close_block_row(pivot, &block_means);
            float* oldest = up;
            up = middle;
            middle = down;
            down = oldest;
        }
        band.pixels = Moments::from_sums(double(last_row - first_row) * width_, pivot, sum, square_sum);
        double mean_sum = 0, mean_square_sum = 0;
        for (const double mean : block_means) {
            mean_sum += mean - pivot;
            mean_square_sum += (mean - pivot) * (mean - pivot);
        }
        band.blocks = Moments::from_sums(double(block_means.size()), pivot, mean_sum, mean_square_sum);
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

    // A row's moments, block by block, so that the blocks' sums come with them.
    void add_row(const float* row, float pivot, double* sum, double* square_sum) {
        const std::int64_t block = options_.block_size, whole = std::int64_t(block_sums_.size());
        for (std::int64_t b = 0; b < whole; ++b) {
            double block_sum = 0;
            add_moments(row + b * block, block, pivot, &block_sum, square_sum);
            block_sums_[b] += block_sum;
            *sum += block_sum;
        }
        add_moments(row + whole * block, width_ - whole * block, pivot, sum, square_sum);
    }

    void close_block_row(float pivot, std::vector<double>* means) {
        const double area = double(options_.block_size) * options_.block_size;
        for (double& block_sum : block_sums_) {
            means->push_back(pivot + block_sum / area);
            block_sum = 0;
        }
    }

    const ImageBatch& batch_;
    const DescriptorOptions& options_;
    const SlopeTable table_;
    const std::int64_t image_, width_;
    std::vector<float> rows_[3];
    std::vector<std::uint8_t> codes_;
    std::vector<double> block_sums_;
};

double entropy(std::vector<std::int64_t> codes, int num_bins, bool include_flat) {
    if (include_flat) codes[num_bins / 2] += codes[num_bins];  // angle 0 opens bin N / 2
    codes.pop_back();
    double total = 0, sum = 0;
    for (const std::int64_t count : codes) total += double(count);
    for (const std::int64_t count : codes) {
        if (count > 0) sum -= double(count) / total * std::log(double(count) / total);
    }
    return std::max(sum, 0.0);
}

void finish(const std::vector<Band>& bands, std::size_t first, std::size_t last,
            const DescriptorOptions& options, float* descriptors, std::int64_t* nonfinite) {
    Moments pixels, blocks;
    std::vector<std::int64_t> codes(options.num_bins + 1, 0);
    *nonfinite = 0;
    for (std::size_t i = first; i < last; ++i) {
        pixels.merge(bands[i].pixels);
        blocks.merge(bands[i].blocks);
        *nonfinite += bands[i].nonfinite;
        for (std::size_t c = 0; c < codes.size(); ++c) codes[c] += bands[i].codes[c];
    }
    descriptors[0] = float(entropy(codes, options.num_bins, options.include_flat));
    descriptors[1] = float(pixels.mean * pixels.mean / (pixels.variance() + kEnlEpsilon));
    descriptors[2] = float(blocks.variance());
}

// Runs task(0) … task(count - 1) on up to `threads` threads; the first exception is thrown on.
template <typename Task>
void run_tasks(std::int64_t count, int threads, const Task& task) {
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
    auto work = [&] {
        try {
            for (std::int64_t i; (i = next++) < count;) task(i);
        } catch (...) {
            if (!failed.exchange(true)) failure = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> helpers;
    for (std::int64_t i = 1; i < std::min<std::int64_t>(threads, count); ++i) helpers.emplace_back(work);
    work();
    for (std::thread& helper : helpers) helper.join();
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
