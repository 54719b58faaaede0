// The Python module crossearth_sar._descriptors: pointers, sizes and a few numbers, no tensors.

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "descriptors.h"

namespace py = pybind11;
using namespace crossearth;

namespace {

void describe_cpu_at(std::uintptr_t data, int pixel_type, std::int64_t images, std::int64_t height,
                     std::int64_t width, std::int64_t stride_image, std::int64_t stride_row,
                     std::int64_t stride_column, int num_bins, int block_size, bool include_flat, int threads,
                     std::uintptr_t descriptors, std::uintptr_t nonfinite) {
    if (images < 0 || height < 3 || width < 3) throw std::invalid_argument("images need 3 x 3 pixels or more");
    if (num_bins < 4 || num_bins % 4 || num_bins > 252) {
        throw std::invalid_argument("num_bins must be divisible by 4, at most 252");
    }
    if (block_size < 1 || threads < 1) throw std::invalid_argument("block_size and threads must be positive");
    if (pixel_type < 0 || pixel_type > static_cast<int>(PixelType::kComplex64)) {
        throw std::invalid_argument("unknown pixel type");
    }
    const ImageBatch batch{reinterpret_cast<const void*>(data), static_cast<PixelType>(pixel_type), images, height,
                           width, stride_image, stride_row, stride_column};
    const py::gil_scoped_release release;
    describe_cpu(batch, {num_bins, block_size, include_flat}, threads, reinterpret_cast<float*>(descriptors),
                 reinterpret_cast<std::int64_t*>(nonfinite));
}

}  // namespace

PYBIND11_MODULE(_descriptors, module) {
    module.doc() = "Fused SAR descriptors; use crossearth_sar.sar_descriptors.";
    module.def("describe_cpu", &describe_cpu_at, py::arg("data"), py::arg("pixel_type"), py::arg("images"),
               py::arg("height"), py::arg("width"), py::arg("stride_image"), py::arg("stride_row"),
               py::arg("stride_column"), py::arg("num_bins"), py::arg("block_size"), py::arg("include_flat"),
               py::arg("threads"), py::arg("descriptors"), py::arg("nonfinite"));
}
