// The CPU half: each image is cut into bands of rows, each band read once, in any order by any thread; what
// the bands found is merged in order, so that the result does not depend on the threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "descriptors.h"
#include "row_kernels.h"
#include "tasks.h"

namespace crossearth {

namespace {

constexpr std::int64_t kBandPixels = 1 << 16;  // about: enough to be worth a task, small enough to share out

// Walks down an image with three rows of X' at hand; rows outside it repeat the border.
class RowWindow {
   public:
    RowWindow(const ImageBatch& batch, std::int64_t image, int num_bins, bool tells_flat)
        : batch_(batch), image_(image), table_(num_bins), tells_flat_(tells_flat) {
        for (auto& row : rows_) row.resize(batch.width + 2 + kRowSlack);
        up_ = rows_[0].data();
        middle_ = rows_[1].data();
        down_ = rows_[2].data();
    }

    void start(std::int64_t first_row) {
        load(std::max<std::int64_t>(first_row - 1, 0), up_);
        load(first_row, middle_);
        load(std::min(first_row + 1, batch_.height - 1), down_);
        y_ = first_row;
    }
    void step() {
        float* oldest = up_;
        up_ = middle_;
        middle_ = down_;
        down_ = oldest;
        load(std::min(++y_ + 1, batch_.height - 1), down_);
    }
    const float* logs() const { return middle_ + 1; }
    void codes(std::uint8_t* codes) const {
        direction_codes(up_, middle_, down_, batch_.width, table_, tells_flat_, codes);
    }
    std::int64_t nonfinite_in(std::int64_t first_row, std::int64_t last_row, std::int64_t first_column = 0) const {
        std::int64_t bad = 0;
        for (std::int64_t y = first_row; y < last_row; ++y) {
            bad += count_nonfinite(batch_.type, pixels(y, first_column), batch_.stride_column,
                                   batch_.width - first_column);
        }
        return bad;
    }

   private:
    const void* pixels(std::int64_t y, std::int64_t x) const {
        const std::int64_t offset =
            image_ * batch_.stride_image + y * batch_.stride_row + x * batch_.stride_column;
        return static_cast<const char*>(batch_.data) + offset * pixel_bytes(batch_.type);
    }
    void load(std::int64_t y, float* row) const {
        log_row(batch_.type, pixels(y, 0), batch_.stride_column, batch_.width, row + 1);
        row[0] = row[1];
        row[batch_.width + 1] = row[batch_.width];
    }

    const ImageBatch& batch_;
    const std::int64_t image_;
    const SlopeTable table_;
    const bool tells_flat_;
    std::vector<float> rows_[3];
    float *up_, *middle_, *down_;
    std::int64_t y_ = 0;
};

// Column sums of deviations from a pivot a column. The pivots follow the image down, so that they are near the
// values and neither floats nor squares lose much.
struct ColumnSums {
    explicit ColumnSums(std::int64_t width) : pivots(width), sums(width), squares(width) {}

    void add(const float* row) {
        add_deviations(row, pivots.data(), std::int64_t(sums.size()), sums.data(), squares.data());
    }
    void clear() {
        std::fill(sums.begin(), sums.end(), 0.0f);
        std::fill(squares.begin(), squares.end(), 0.0f);
    }

    std::vector<float> pivots, sums, squares;
};

Moments moments_of(const double* values, std::size_t count) {
    if (count == 0) return {};
    double sum = 0, square_sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const double d = values[i] - values[0];
        sum += d;
        square_sum += d * d;
    }
    return Moments::from_sums(double(count), values[0], sum, square_sum);
}

// The entropies' parts, for patches of so few pixels that a table of all counts pays.
class EntropyParts {
   public:
    EntropyParts() = default;
    explicit EntropyParts(std::int64_t total) : total_(double(total)), parts_(total <= kMost ? total + 1 : 0) {
        for (std::size_t count = 1; count < parts_.size(); ++count) parts_[count] = entropy_part(double(count), total_);
    }
    double of(std::int64_t count, double total) const {
        return total == total_ && !parts_.empty() ? parts_[count] : entropy_part(double(count), total);
    }

   private:
    static constexpr std::int64_t kMost = 1024;
    double total_ = 0;
    std::vector<double> parts_;
};

double entropy(std::int64_t* bins, int num_bins, bool include_flat, const EntropyParts& parts = {}) {
    if (include_flat) bins[num_bins / 2] += bins[num_bins];  // angle 0 opens bin N / 2
    double total = 0, sum = 0;
    for (int bin = 0; bin < num_bins; ++bin) total += double(bins[bin]);
    for (int bin = 0; bin < num_bins; ++bin) {
        if (bins[bin] > 0) sum += parts.of(bins[bin], total);
    }
    return std::max(sum, 0.0);
}

struct Band {
    Moments pixels{}, blocks{};
    std::int64_t nonfinite = 0;
    std::vector<std::int64_t> bins;
};

class BandReader {
   public:
    BandReader(const ImageBatch& batch, const DescriptorOptions& options, std::int64_t image)
        : options_(options), width_(batch.width), window_(batch, image, options.num_bins, !options.include_flat),
          codes_(width_ + kRowSlack), columns_(width_), block_sums_(width_ / options.block_size) {}

    Band read(std::int64_t first_row, std::int64_t last_row) {
        Band band;
        CodeCounts counts(options_.num_bins);
        window_.start(first_row);
        set_pivot(sum_of(window_.logs(), width_) / width_);
        std::vector<double> block_means;
        int rows_in_float = 0;
        for (std::int64_t y = first_row; y < last_row; ++y) {
            if (y > first_row) window_.step();
            window_.codes(codes_.data());
            counts.add(codes_.data(), width_);
            columns_.add(window_.logs());
            const bool block_row_ends = (y + 1) % options_.block_size == 0;
            if (++rows_in_float == kRowsInFloat || block_row_ends || y + 1 == last_row) {
                empty_columns(rows_in_float, &band.pixels);
                rows_in_float = 0;
            }
            if (block_row_ends) close_block_row(&block_means);
        }
        band.blocks = moments_of(block_means.data(), block_means.size());
        band.bins.resize(options_.num_bins + 1);
        counts.add_to(band.bins.data());
        // What is not finite shows in the mean; it is counted only then.
        if (!std::isfinite(band.pixels.mean)) band.nonfinite = window_.nonfinite_in(first_row, last_row);
        return band;
    }

   private:
    void set_pivot(double mean) {
        pivot_ = float(mean);
        std::fill(columns_.pivots.begin(), columns_.pivots.end(), pivot_);
    }

    // The column sums of `rows` rows into the blocks' sums and the moments, in double.
    void empty_columns(int rows, Moments* pixels) {
        const std::int64_t block = options_.block_size;
        double sum = 0;
        std::int64_t x = 0;
        for (double& block_sum : block_sums_) {
            const double deviations = sum_of(&columns_.sums[x], block);
            block_sum += double(rows) * block * pivot_ + deviations;
            sum += deviations;
            x += block;
        }
        sum += sum_of(&columns_.sums[x], width_ - x);
        const double square_sum = sum_of(columns_.squares.data(), width_);
        columns_.clear();
        const Moments chunk = Moments::from_sums(double(rows) * width_, pivot_, sum, square_sum);
        pixels->merge(chunk);
        set_pivot(chunk.mean);
    }

    void close_block_row(std::vector<double>* means) {
        const double area = double(options_.block_size) * options_.block_size;
        for (double& block_sum : block_sums_) {
            means->push_back(block_sum / area);
            block_sum = 0;
        }
    }

    const DescriptorOptions& options_;
    const std::int64_t width_;
    RowWindow window_;
    std::vector<std::uint8_t> codes_;
    ColumnSums columns_;
    std::vector<double> block_sums_;
    float pivot_ = 0;
};

void finish(const std::vector<Band>& bands, std::size_t first, std::size_t last,
            const DescriptorOptions& options, float* descriptors, std::int64_t* nonfinite) {
    Moments pixels{}, blocks{};
    std::vector<std::int64_t> bins(options.num_bins + 1, 0);
    *nonfinite = 0;
    for (std::size_t i = first; i < last; ++i) {
        pixels.merge(bands[i].pixels);
        blocks.merge(bands[i].blocks);
        *nonfinite += bands[i].nonfinite;
        for (std::size_t b = 0; b < bins.size(); ++b) bins[b] += bands[i].bins[b];
    }
    descriptors[0] = float(entropy(bins.data(), options.num_bins, options.include_flat));
    descriptors[1] = float(number_of_looks(pixels));
    descriptors[2] = float(blocks.variance());
}

// Reads rows of patches; a patch is 4 x 4 blocks of patch_size / 4 pixels a side.
class PatchReader {
   public:
    PatchReader(const ImageBatch& batch, const MapOptions& options, std::int64_t image)
        : options_(options), size_(options.patch_size), across_(batch.width / size_),
          window_(batch, image, options.num_bins, !options.include_flat), code_stride_(batch.width + kRowSlack),
          codes_(size_ * code_stride_), columns_(across_ * size_), block_sums_(across_ * kBlocksPerSide),
          patches_(across_), parts_(size_ * size_) {
        for (int code = 0; code < number_of_codes(options.num_bins); ++code) {
            bin_of_[code] = bin_of_code(code, options.num_bins);
        }
    }

    // Rows of patches `first` to `last` into map, whose three planes are `plane` elements apart; returns how many
    // pixels of the rows up to `last_row` are not finite.
    std::int64_t read(std::int64_t first, std::int64_t last, std::int64_t last_row, float* map, std::int64_t plane) {
        bool is_suspicious = false;
        for (std::int64_t row = first; row < last; ++row) {
            read_patches(row * size_, row == first);
            for (std::int64_t x = 0; x < across_; ++x) {
                const Patch& patch = patches_[x];
                float* out = map + row * across_ + x;
                out[0] = float(entropy_of(x));
                out[plane] = float(number_of_looks(patch.pixels));
                out[2 * plane] = float(moments_of(patch.block_means, kBlocks).variance());
                is_suspicious |= !std::isfinite(patch.pixels.mean);
            }
        }
        const std::int64_t first_unseen = is_suspicious ? 0 : across_ * size_;
        return window_.nonfinite_in(first * size_, last * size_, first_unseen) +
               window_.nonfinite_in(last * size_, last_row);
    }

   private:
    static constexpr int kBlocks = kBlocksPerSide * kBlocksPerSide;
    struct Patch {
        Moments pixels;
        double block_means[kBlocks];
    };

    void read_patches(std::int64_t first_row, bool starts) {
        const std::int64_t block = size_ / kBlocksPerSide;
        int rows_in_float = 0;
        for (std::int64_t r = 0; r < size_; ++r) {
            if (r == 0 && starts) {
                window_.start(first_row);
            } else {
                window_.step();
            }
            window_.codes(&codes_[r * code_stride_]);
            if (r == 0) start_patches();
            columns_.add(window_.logs());
            const bool block_row_ends = (r + 1) % block == 0;
            if (++rows_in_float == kRowsInFloat || block_row_ends) {
                empty_columns(rows_in_float);
                rows_in_float = 0;
            }
            if (block_row_ends) close_block_row(r / block);
        }
    }

    void start_patches() {
        for (std::int64_t x = 0; x < across_; ++x) {
            patches_[x].pixels = {};
            set_pivot(x, sum_of(window_.logs() + x * size_, size_) / size_);
        }
    }

    void set_pivot(std::int64_t patch, double mean) {
        std::fill_n(&columns_.pivots[patch * size_], size_, float(mean));
    }

    void empty_columns(int rows) {
        const std::int64_t block = size_ / kBlocksPerSide;
        for (std::int64_t patch = 0; patch < across_; ++patch) {
            const double pivot = columns_.pivots[patch * size_];
            double sum = 0;
            for (int b = 0; b < kBlocksPerSide; ++b) {
                const double deviations = sum_of(&columns_.sums[patch * size_ + b * block], block);
                block_sums_[patch * kBlocksPerSide + b] += double(rows * block) * pivot + deviations;
                sum += deviations;
            }
            const double square_sum = sum_of(&columns_.squares[patch * size_], size_);
            const Moments chunk = Moments::from_sums(double(rows * size_), pivot, sum, square_sum);
            patches_[patch].pixels.merge(chunk);
            set_pivot(patch, chunk.mean);
        }
        columns_.clear();
    }

    void close_block_row(std::int64_t block_row) {
        const double block = double(size_) / kBlocksPerSide;
        for (std::int64_t i = 0; i < std::int64_t(block_sums_.size()); ++i) {
            double* means = patches_[i / kBlocksPerSide].block_means + block_row * kBlocksPerSide;
            means[i % kBlocksPerSide] = block_sums_[i] / (block * block);
            block_sums_[i] = 0;
        }
    }

    double entropy_of(std::int64_t patch) const {
        std::uint32_t counts[2][256];
        const int codes = number_of_codes(options_.num_bins);
        for (auto& table : counts) std::fill_n(table, codes, 0u);
        for (std::int64_t r = 0; r < size_; ++r) {
            const std::uint8_t* row = &codes_[r * code_stride_ + patch * size_];
            for (std::int64_t x = 0; x < size_; x += 2) {  // a patch's side is even
                ++counts[0][row[x]];
                ++counts[1][row[x + 1]];
            }
        }
        std::int64_t bins[256] = {};
        for (int code = 0; code < codes; ++code) bins[bin_of_[code]] += counts[0][code] + counts[1][code];
        return entropy(bins, options_.num_bins, options_.include_flat, parts_);
    }

    const MapOptions& options_;
    const std::int64_t size_, across_;
    RowWindow window_;
    const std::int64_t code_stride_;
    std::vector<std::uint8_t> codes_;  // of a row of patches
    ColumnSums columns_;
    std::vector<double> block_sums_;
    std::vector<Patch> patches_;
    const EntropyParts parts_;
    int bin_of_[256];
};

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

void describe_map_cpu(const ImageBatch& batch, const MapOptions& options, int threads, float* map,
                      std::int64_t* nonfinite) {
    const std::int64_t size = options.patch_size, rows = batch.height / size, plane = rows * (batch.width / size);
    const std::int64_t rows_in_band = std::max<std::int64_t>(1, kBandPixels / (batch.width * size));
    const std::int64_t bands_in_image = (rows + rows_in_band - 1) / rows_in_band;
    std::vector<std::int64_t> bad(batch.images * bands_in_image);
    run_tasks(std::int64_t(bad.size()), threads, [&](std::int64_t task) {
        const std::int64_t image = task / bands_in_image, first = task % bands_in_image * rows_in_band;
        const std::int64_t last = std::min(first + rows_in_band, rows);
        PatchReader reader(batch, options, image);
        bad[task] = reader.read(first, last, last == rows ? batch.height : last * size,
                                map + image * kNumDescriptors * plane, plane);
    });
    for (std::int64_t image = 0; image < batch.images; ++image) {
        nonfinite[image] = 0;
        const std::int64_t first = image * bands_in_image;
        for (std::int64_t i = first; i < first + bands_in_image; ++i) nonfinite[image] += bad[i];
    }
}

}  // namespace crossearth
