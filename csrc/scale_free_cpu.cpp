// The scale-free descriptors: the largest pixel, by which intensities are taken; then blocks of 8 x 8 pixels, whose
// medians say how strong gradients of speckle are; then the gradients of cells of 2 x 2 pixels. All in bands of rows,
// in any order by any thread, merged in order. The cells, a quarter of the image, are kept between.

#include "scale_free.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "row_kernels.h"
#include "scale_free_rows.h"
#include "tasks.h"

namespace crossearth {

namespace {

constexpr std::int64_t kBandPixels = 1 << 16;  // as in descriptors_cpu.cpp

std::int64_t rows_in_band(std::int64_t width, std::int64_t multiple) {
    return std::max<std::int64_t>(1, kBandPixels / (width * multiple)) * multiple;
}

std::int64_t parts(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }

const void* pixels_of(const ImageBatch& batch, std::int64_t image, std::int64_t y) {
    return static_cast<const char*>(batch.data) +
           (image * batch.stride_image + y * batch.stride_row) * pixel_bytes(batch.type);
}

// By what an image's pixels are multiplied, a power of two, so that no intensity overflows.
struct Scale {
    double factor = 1;
    float smallest = 0;
};

Scale scale_of(double largest, PixelType type) {
    Scale scale;
    if (!(largest > 0)) return scale;
    const int most = type == PixelType::kFloat64 ? 1022 : 126;
    scale.factor = std::ldexp(1.0, std::clamp(-std::ilogb(largest), -most, most));
    scale.smallest = float(kSmallest * (largest * scale.factor) * (largest * scale.factor));
    return scale;
}

// Of each block; looks, correlation and variation as in METHOD. `mean` 0: nothing was measured there.
struct BlockValues {
    explicit BlockValues(std::int64_t blocks) : spread(blocks), correlation(blocks), mean(blocks), variation(blocks) {}
    std::vector<float> spread, correlation, mean, variation;
};

// Cells with one more on every side, which repeats the border.
struct Cells {
    Cells(std::int64_t height, std::int64_t width)
        : rows(height / 2), columns(width / 2), stride(columns + 2 + kRowSlack), values(rows * stride) {}
    float* row(std::int64_t y) { return &values[y * stride]; }
    const float* clamped_row(std::int64_t y) const { return &values[std::clamp<std::int64_t>(y, 0, rows - 1) * stride]; }
    std::int64_t rows, columns, stride;
    std::vector<float> values;
};

// What a row of blocks has gathered, a block after the other; emptied out of column sums of floats.
struct BlockSums {
    double sum = 0, squares = 0, along_x = 0, along_y = 0;
    double edges = 0;  // first and last row, first and last column: each pixel there is in one pair less
    double quarters[2][2] = {};
};

double deviation(const double* values, int count) {
    if (count == 0) return 0;
    double mean = 0, square_sum = 0;
    for (int i = 0; i < count; ++i) mean += values[i] / count;
    for (int i = 0; i < count; ++i) square_sum += (values[i] - mean) * (values[i] - mean);
    return std::sqrt(square_sum / count);
}

// Reads rows of blocks of `side` pixels.
class BlockReader {
   public:
    BlockReader(const ImageBatch& batch, std::int64_t image, const Scale& scale, std::int64_t side, bool wants_quarters,
                Cells* cells)
        : batch_(batch), image_(image), scale_(scale), side_(side), across_(batch.width / side),
          wants_quarters_(wants_quarters), cells_(cells), columns_(4 * batch.width), folded_(batch.width),
          blocks_(across_), to_{&columns_[0], &columns_[batch.width], &columns_[2 * batch.width], &columns_[3 * batch.width]} {
        for (auto& row : rows_) row.resize(batch.width + kRowSlack);
    }

    // Rows first_row, a multiple of side, to last_row; what is below the last whole block goes into cells alone.
    void read(std::int64_t first_row, std::int64_t last_row, BlockValues* values) {
        for (std::int64_t y = first_row; y < last_row; ++y) {
            float* row = rows_[y % 2].data();
            intensity_row(batch_.type, pixels_of(batch_, image_, y), batch_.stride_column, batch_.width, scale_.factor,
                          scale_.smallest, row);
            if (cells_) add_to_cells(row, y);
            const std::int64_t r = y % side_;
            if (y - r + side_ > batch_.height) continue;
            add_to_blocks(row, r > 0 ? rows_[(y + 1) % 2].data() : nullptr, r);
            if (r + 1 == side_) close_blocks(y / side_, values);
        }
    }

   private:
    void add_to_cells(const float* row, std::int64_t y) {
        if (y / 2 >= cells_->rows) return;
        float* cells = cells_->row(y / 2);
        if (y % 2 == 0) return fold_pairs(row, cells_->columns, cells + 1);
        add_pairs_of(row, cells_->columns, cells + 1);
        cells[0] = cells[1];
        cells[cells_->columns + 1] = cells[cells_->columns];
    }

    void add_to_blocks(const float* row, const float* above, std::int64_t r) {
        if (r == 0 || r + 1 == side_) {
            sum_blocks(row, [&](std::int64_t b, double sum) { blocks_[b].edges += sum; });
        }
        add_products(row, above, batch_.width, to_);
        ++rows_held_;
        const std::int64_t half = side_ / 2;
        const bool half_ends = wants_quarters_ && r + 1 == half;
        if (half_ends || r + 1 == side_ || rows_held_ == kRowsInFloat) empty_columns(wants_quarters_ && r >= half);
    }

    // sum(b, of the columns of block b), by pairs where the side is a power of two.
    template <typename Take>
    void sum_blocks(const float* columns, const Take& take) {
        if (side_ == 4 || side_ == 8 || side_ == 16) {
            std::int64_t left = across_ * side_;
            const float* from = columns;
            for (; left > across_; left /= 2) {  // in place after the first: element i is of 2 i and 2 i + 1
                float* to = from == fold_[0] ? fold_[1] : fold_[0];
                fold_pairs(from, left / 2, to);
                from = to;
            }
            for (std::int64_t b = 0; b < across_; ++b) take(b, double(from[b]));
        } else {
            for (std::int64_t b = 0; b < across_; ++b) take(b, sum_of(columns + b * side_, side_));
        }
    }

    void empty_columns(bool lower) {
        const std::int64_t half = side_ / 2;
        for (std::int64_t b = 0; b < across_; ++b) {
            const float* sums = to_.sums + b * side_;
            blocks_[b].edges += double(sums[0]) + double(sums[side_ - 1]);
            to_.along_x[(b + 1) * side_ - 1] = 0;  // that pair's right one is the next block's
            if (wants_quarters_) {
                blocks_[b].quarters[lower][0] += sum_of(sums, half);
                blocks_[b].quarters[lower][1] += sum_of(sums + half, side_ - half);
            }
        }
        sum_blocks(to_.sums, [&](std::int64_t b, double sum) { blocks_[b].sum += sum; });
        sum_blocks(to_.squares, [&](std::int64_t b, double sum) { blocks_[b].squares += sum; });
        sum_blocks(to_.along_x, [&](std::int64_t b, double sum) { blocks_[b].along_x += sum; });
        sum_blocks(to_.along_y, [&](std::int64_t b, double sum) { blocks_[b].along_y += sum; });
        std::fill(columns_.begin(), columns_.end(), 0.0f);
        rows_held_ = 0;
    }

    void close_blocks(std::int64_t block_row, BlockValues* values) {
        const double n = double(side_ * side_), pairs = double(side_ * (side_ - 1));
        for (std::int64_t b = 0; b < across_; ++b) {
            const BlockSums& of = blocks_[b];
            const std::int64_t at = block_row * across_ + b;
            const double mean = of.sum / n, square = mean > 0 ? mean * mean : 1;
            const double spread = std::max(0.0, (of.squares - of.sum * mean) / ((n - 1) * square));
            const double products = of.along_x + of.along_y - mean * (4 * of.sum - of.edges) + 2 * pairs * mean * mean;
            const double correlation = products / (2 * pairs * square) / std::max(spread, kLeastSpread);
            values->mean[at] = float(mean);
            values->spread[at] = float(spread);
            values->correlation[at] = float(std::clamp(correlation, -1.0, 1.0));
            if (wants_quarters_) values->variation[at] = float(spread_of(of.quarters));
            blocks_[b] = {};
        }
    }

    double spread_of(const double (&quarters)[2][2]) const {
        const double sides[2] = {double(side_ / 2), double(side_ - side_ / 2)};
        double logs[4];
        int count = 0;
        for (int y = 0; y < 2; ++y) {
            for (int x = 0; x < 2; ++x) {
                if (quarters[y][x] > 0) logs[count++] = std::log(float(quarters[y][x] / (sides[y] * sides[x])));
            }
        }
        return deviation(logs, count);
    }

    const ImageBatch& batch_;
    const std::int64_t image_;
    const Scale scale_;
    const std::int64_t side_, across_;
    const bool wants_quarters_;
    Cells* const cells_;
    std::vector<float> rows_[2], columns_, folded_;
    float* const fold_[2] = {folded_.data(), folded_.data() + folded_.size() / 2};
    std::vector<BlockSums> blocks_;
    const ProductSums to_;
    int rows_held_ = 0;
};

// What speaks for an image.
struct Global {
    double spread = 1, correlation = 0, variation = 0, entropy = 0;
    float floor = 0;
};

double lower_median(std::vector<float>* values) {
    const auto middle = values->begin() + (std::int64_t(values->size()) - 1) / 2;
    std::nth_element(values->begin(), middle, values->end());
    return *middle;
}

Global global_of(const BlockValues& blocks) {
    std::vector<float> spread, correlation;
    double first = 0, sum = 0, square_sum = 0;
    for (std::size_t i = 0; i < blocks.mean.size(); ++i) {
        if (!(blocks.mean[i] > 0)) continue;
        const double log_mean = std::log(double(blocks.mean[i]));
        if (spread.empty()) first = log_mean;
        sum += log_mean - first;
        square_sum += (log_mean - first) * (log_mean - first);
        spread.push_back(blocks.spread[i]);
        correlation.push_back(blocks.correlation[i]);
    }
    Global global;
    if (!spread.empty()) {
        const double count = double(spread.size());
        global.spread = lower_median(&spread);
        global.correlation = lower_median(&correlation);
        global.variation = std::sqrt(std::max(0.0, square_sum / count - sum / count * (sum / count)));
    }
    const double of_speckle = std::sqrt(kGradientVariance * std::min(global.spread, 1.0));
    global.floor = float(kDeviations * of_speckle * (1 + std::max(global.correlation, 0.0)));
    return global;
}

double number_of_looks(double spread) { return -std::log(std::max(spread, kLeastSpread)); }

double direction_entropy(const double* weights, double cells) {
    double total = kPrior * cells, sum = 0;
    for (int bin = 0; bin < kDirectionBins; ++bin) total += weights[bin];
    const double least = kPrior / kDirectionBins * cells / total, part_of_least = least * std::log(least);
    for (int bin = 0; bin < kDirectionBins; ++bin) {  // most bins of a small patch are empty: a logarithm saved
        const double share = weights[bin] / total + least;
        sum -= weights[bin] > 0 ? share * std::log(share) : part_of_least;
    }
    return std::max(sum, 0.0);
}

// A patch has the cells whose first pixel it has: those from here on.
std::int64_t first_cell(std::int64_t patch, std::int64_t patch_size) { return (patch * patch_size + 1) / 2; }

// Gradients of rows of cells.
class DirectionReader {
   public:
    DirectionReader(const Cells& cells, float floor)
        : cells_(cells), floor_(floor), sums_(kDirectionBins * cells.columns), weights_(cells.columns),
          codes_(cells.columns) {}

    // Adds to `total` and, where there is a map, fills the entropies of rows of patches.
    void read(std::int64_t first, std::int64_t last, double* total) {
        for (std::int64_t y = first; y < last; ++y) {
            add(y);
            if ((y - first + 1) % kRowsInFloat == 0 || y + 1 == last) empty(0, cells_.columns, total);
        }
    }
    void read_patches(std::int64_t row, std::int64_t patch_size, std::int64_t across, double* total, float* entropies) {
        const std::int64_t first = first_cell(row, patch_size);
        const std::int64_t last = std::min(first_cell(row + 1, patch_size), cells_.rows);
        for (std::int64_t y = first; y < last; ++y) add(y);
        for (std::int64_t p = 0; p < across; ++p) {
            const std::int64_t left = first_cell(p, patch_size);
            const std::int64_t right = std::min(first_cell(p + 1, patch_size), cells_.columns);
            double weights[kDirectionBins] = {};
            empty(left, right, weights);
            for (int bin = 0; bin < kDirectionBins; ++bin) total[bin] += weights[bin];
            entropies[p] = float(direction_entropy(weights, double((last - first) * (right - left))));
        }
        empty(first_cell(across, patch_size), cells_.columns, total);
    }

   private:
    void add(std::int64_t y) {
        add_direction_weights(cells_.clamped_row(y - 1), cells_.clamped_row(y), cells_.clamped_row(y + 1),
                              cells_.columns, floor_, weights_.data(), codes_.data(), sums_.data(), cells_.columns);
    }
    void empty(std::int64_t left, std::int64_t right, double* into) {
        for (int bin = 0; bin < kDirectionBins; ++bin) {
            float* sums = &sums_[bin * cells_.columns];
            for (std::int64_t x = left; x < right; ++x) {
                into[bin] += double(sums[x]);
                sums[x] = 0;
            }
        }
    }

    const Cells& cells_;
    const float floor_;
    std::vector<float> sums_, weights_;
    std::vector<std::int32_t> codes_;
};

struct Directions {
    double weights[kDirectionBins] = {};
};

class Description {
   public:
    Description(const ImageBatch& batch, std::int64_t image, std::int64_t patch_size, int threads)
        : batch_(batch), image_(image), patch_(patch_size), threads_(threads),
          block_(std::min<std::int64_t>({kScaleFreeBlock, batch.height, batch.width})),
          patch_rows_(patch_ ? batch.height / patch_ : 0), patch_columns_(patch_ ? batch.width / patch_ : 0) {}

    std::int64_t write(float* descriptors, float* map) {
        if (const std::int64_t bad = find_scale()) {
            std::fill_n(descriptors, kNumScaleFree, std::numeric_limits<float>::quiet_NaN());
            std::fill_n(map, kNumScaleFree * patch_rows_ * patch_columns_, std::numeric_limits<float>::quiet_NaN());
            return bad;
        }
        Cells cells(batch_.height, batch_.width);
        const bool shares_blocks = patch_ == block_;
        const BlockValues blocks = read_blocks(block_, shares_blocks, &cells);
        Global global = global_of(blocks);
        read_directions(cells, &global, map);
        const double columns[] = {global.entropy, number_of_looks(global.spread), global.correlation, global.variation};
        std::copy(columns, columns + kNumScaleFree, descriptors);
        if (patch_) write_map(shares_blocks ? blocks : read_blocks(patch_, true, nullptr), descriptors, map);
        return 0;
    }

   private:
    // The number of pixels that are NaN or inf; 0 where there is a scale.
    std::int64_t find_scale() {
        const std::int64_t band = rows_in_band(batch_.width, 1), bands = parts(batch_.height, band);
        std::vector<double> largest(bands);
        std::vector<std::int64_t> bad(bands);
        run_tasks(bands, threads_, [&](std::int64_t task) {
            for (std::int64_t y = task * band; y < std::min((task + 1) * band, batch_.height); ++y) {
                const void* pixels = pixels_of(batch_, image_, y);
                const double of_row = largest_magnitude(batch_.type, pixels, batch_.stride_column, batch_.width);
                largest[task] = std::max(largest[task], of_row);
                if (!std::isfinite(of_row)) {
                    bad[task] += count_nonfinite(batch_.type, pixels, batch_.stride_column, batch_.width);
                }
            }
        });
        std::int64_t all_bad = 0;
        for (const std::int64_t count : bad) all_bad += count;
        scale_ = scale_of(*std::max_element(largest.begin(), largest.end()), batch_.type);
        return all_bad;
    }

    BlockValues read_blocks(std::int64_t side, bool wants_quarters, Cells* cells) {
        BlockValues values((batch_.height / side) * (batch_.width / side));
        const std::int64_t band = rows_in_band(batch_.width, 2 * side);  // whole blocks, whole cells
        run_tasks(parts(batch_.height, band), threads_, [&](std::int64_t task) {
            BlockReader reader(batch_, image_, scale_, side, wants_quarters, cells);
            reader.read(task * band, std::min((task + 1) * band, batch_.height), &values);
        });
        return values;
    }

    void read_directions(const Cells& cells, Global* global, float* map) {
        const std::int64_t patched = patch_ ? std::min(first_cell(patch_rows_, patch_), cells.rows) : 0;
        const std::int64_t patch_band = patch_ ? rows_in_band(batch_.width, patch_) / patch_ : 1;
        const std::int64_t patch_bands = parts(patch_rows_, patch_band);
        const std::int64_t band = rows_in_band(cells.columns, 1), bands = parts(cells.rows - patched, band);
        std::vector<Directions> found(patch_bands + bands);
        run_tasks(std::int64_t(found.size()), threads_, [&](std::int64_t task) {
            DirectionReader reader(cells, global->floor);
            double* weights = found[task].weights;
            if (task >= patch_bands) {
                const std::int64_t first = patched + (task - patch_bands) * band;
                return reader.read(first, std::min(first + band, cells.rows), weights);
            }
            for (std::int64_t row = task * patch_band; row < std::min((task + 1) * patch_band, patch_rows_); ++row) {
                reader.read_patches(row, patch_, patch_columns_, weights, map + row * patch_columns_);
            }
        });
        Directions all;
        for (const Directions& of : found) {
            for (int bin = 0; bin < kDirectionBins; ++bin) all.weights[bin] += of.weights[bin];
        }
        global->entropy = direction_entropy(all.weights, double(cells.rows * cells.columns));
    }

    // Beside the entropies, which are there; a patch where nothing was measured has the image's values.
    void write_map(const BlockValues& patches, const float* descriptors, float* map) const {
        const std::int64_t plane = patch_rows_ * patch_columns_;
        for (std::int64_t i = 0; i < plane; ++i) {
            const bool is_measured = patches.mean[i] > 0;
            map[i] = is_measured ? map[i] : descriptors[0];
            map[plane + i] = is_measured ? float(number_of_looks(patches.spread[i])) : descriptors[1];
            map[2 * plane + i] = is_measured ? patches.correlation[i] : descriptors[2];
            map[3 * plane + i] = is_measured ? patches.variation[i] : descriptors[3];
        }
    }

    const ImageBatch& batch_;
    const std::int64_t image_, patch_;
    const int threads_;
    const std::int64_t block_, patch_rows_, patch_columns_;
    Scale scale_;
};

}  // namespace

void describe_scale_free_cpu(const ImageBatch& batch, int patch_size, int threads, float* descriptors, float* map,
                             std::int64_t* nonfinite) {
    const std::int64_t patches = patch_size ? (batch.height / patch_size) * (batch.width / patch_size) : 0;
    // Images small enough to be one task each are shared out whole; larger ones are cut into bands.
    const bool whole_images = batch.images >= threads;
    run_tasks(batch.images, whole_images ? threads : 1, [&](std::int64_t image) {
        Description description(batch, image, patch_size, whole_images ? 1 : threads);
        nonfinite[image] =
            description.write(descriptors + image * kNumScaleFree, map + image * kNumScaleFree * patches);
    });
}

}  // namespace crossearth
