// The Python module crossearth_sar._descriptors: pointers, sizes and a few numbers, no tensors.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>

#include "descriptors.h"
#include "ffn_binding.h"
#include "scale_free.h"
#ifdef CROSSEARTH_CUDA
#include "descriptors_cuda.h"
#endif

namespace py = pybind11;
using namespace crossearth;

namespace {

ImageBatch batch_of(std::uintptr_t data, int pixel_type, std::int64_t images, std::int64_t height,
                    std::int64_t width, std::int64_t stride_image, std::int64_t stride_row,
                    std::int64_t stride_column) {
    if (images < 0 || height < 3 || width < 3) throw std::invalid_argument("images need 3 x 3 pixels or more");
    if (pixel_type < 0 || pixel_type > static_cast<int>(PixelType::kComplex64)) {
        throw std::invalid_argument("unknown pixel type");
    }
    return {reinterpret_cast<const void*>(data), static_cast<PixelType>(pixel_type), images, height, width,
            stride_image, stride_row, stride_column};
}

void check_bins(int num_bins) {
    if (num_bins < 4 || num_bins % 4 || num_bins > 252) {
        throw std::invalid_argument("num_bins must be divisible by 4, at most 252");
    }
}

DescriptorOptions options_of(int num_bins, int block_size, bool include_flat) {
    check_bins(num_bins);
    if (block_size < 1) throw std::invalid_argument("block_size must be positive");
    return {num_bins, block_size, include_flat};
}

MapOptions map_options_of(int num_bins, int patch_size, bool include_flat) {
    check_bins(num_bins);
    if (patch_size < kBlocksPerSide || patch_size % kBlocksPerSide) {
        throw std::invalid_argument("patch_size must be a multiple of 4");
    }
    return {num_bins, patch_size, include_flat};
}

}  // namespace

PYBIND11_MODULE(_descriptors, module) {
    module.doc() = "Fused SAR descriptors and experts; use crossearth_sar.sar_descriptors and PhysicsGuidedMoE.";
    py::class_<ImageBatch>(module, "ImageBatch")
        .def(py::init(&batch_of), py::arg("data"), py::arg("pixel_type"), py::arg("images"), py::arg("height"),
             py::arg("width"), py::arg("stride_image"), py::arg("stride_row"), py::arg("stride_column"));
    py::class_<DescriptorOptions>(module, "Options")
        .def(py::init(&options_of), py::arg("num_bins"), py::arg("block_size"), py::arg("include_flat"));
    py::class_<MapOptions>(module, "MapOptions")
        .def(py::init(&map_options_of), py::arg("num_bins"), py::arg("patch_size"), py::arg("include_flat"));
    module.def(
        "describe_cpu",
        [](const ImageBatch& batch, const DescriptorOptions& options, int threads, std::uintptr_t descriptors,
           std::uintptr_t nonfinite) {
            describe_cpu(batch, options, threads, reinterpret_cast<float*>(descriptors),
                         reinterpret_cast<std::int64_t*>(nonfinite));
        },
        py::call_guard<py::gil_scoped_release>());
    module.def(
        "describe_map_cpu",
        [](const ImageBatch& batch, const MapOptions& options, int threads, std::uintptr_t map,
           std::uintptr_t nonfinite) {
            if (options.patch_size > std::min(batch.height, batch.width)) {
                throw std::invalid_argument("patch_size exceeds the image");
            }
            describe_map_cpu(batch, options, threads, reinterpret_cast<float*>(map),
                             reinterpret_cast<std::int64_t*>(nonfinite));
        },
        py::call_guard<py::gil_scoped_release>());
    module.def(
        "describe_scale_free_cpu",
        [](const ImageBatch& batch, int patch_size, int threads, std::uintptr_t descriptors, std::uintptr_t map,
           std::uintptr_t nonfinite) {
            if (patch_size && (patch_size < kMinPatch || patch_size > std::min(batch.height, batch.width))) {
                throw std::invalid_argument("patch_size must be 0, or at least 4 and inside the image");
            }
            describe_scale_free_cpu(batch, patch_size, threads, reinterpret_cast<float*>(descriptors),
                                    reinterpret_cast<float*>(map), reinterpret_cast<std::int64_t*>(nonfinite));
        },
        py::call_guard<py::gil_scoped_release>());
    bind_ffn(module);
#ifdef CROSSEARTH_CUDA
    module.attr("has_cuda") = true;
    module.def("cuda_device_count", &cuda_device_count);
    module.def("cuda_scratch_bytes", &cuda_scratch_bytes);
    module.def("describe_cuda", [](const ImageBatch& batch, const DescriptorOptions& options,
                                   std::uintptr_t scratch, std::uintptr_t stream, std::uintptr_t descriptors,
                                   std::uintptr_t nonfinite) {
        describe_cuda(batch, options, reinterpret_cast<void*>(scratch), reinterpret_cast<void*>(stream),
                      reinterpret_cast<float*>(descriptors), reinterpret_cast<std::int64_t*>(nonfinite));
    });
#else
    module.attr("has_cuda") = false;
#endif
}
