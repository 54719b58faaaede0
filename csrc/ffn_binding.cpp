// The experts' FFN in the Python module crossearth_sar._descriptors: pointers and sizes, no tensors.

#include "ffn_binding.h"

#include <stdexcept>
#include <string>

#include "ffn_cpu.h"

namespace py = pybind11;

namespace crossearth {

namespace {

struct NamedKernels {
    const char* name;
    const FfnKernels* (*find)();
};
constexpr NamedKernels kInstructionSets[] = {{"avx512", &ffn_kernels_avx512}, {"avx2", &ffn_kernels_avx2}};

const FfnKernels& kernels_called(const std::string& name) {
    for (const NamedKernels& kernels : kInstructionSets) {
        if (name == kernels.name && kernels.find()) return *kernels.find();
    }
    throw std::invalid_argument("this processor, or this build, has no kernels for " + name);
}

// Best first.
py::tuple instruction_sets_here() {
    py::list names;
    for (const NamedKernels& kernels : kInstructionSets) {
        if (kernels.find()) names.append(kernels.name);
    }
    return py::tuple(names);
}

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

RoutedRows routed_of(std::uintptr_t source, std::uintptr_t offsets, std::int64_t experts, std::int64_t top_k) {
    if (experts < 1 || top_k < 1) throw std::invalid_argument("experts and top_k must be positive");
    return {pointer<const std::int64_t>(source), pointer<const std::int32_t>(offsets), experts, top_k};
}

Experts experts_of(std::uintptr_t w1, std::uintptr_t b1, std::uintptr_t w2, std::uintptr_t b2, std::int64_t dim,
                   std::int64_t hidden) {
    if (dim < 1 || hidden < 1 || dim % kWidthStep || hidden % kWidthStep) {
        throw std::invalid_argument("widths must be multiples of " + std::to_string(kWidthStep));
    }
    return {pointer<const float>(w1), pointer<const float>(b1), pointer<const float>(w2), pointer<const float>(b2),
            dim, hidden};
}

FfnGradients gradients_of(std::uintptr_t dx, std::uintptr_t dgate, std::uintptr_t dw1, std::uintptr_t db1,
                          std::uintptr_t dw2, std::uintptr_t db2) {
    return {pointer<float>(dx),  pointer<float>(dgate), pointer<float>(dw1),
            pointer<float>(db1), pointer<float>(dw2),   pointer<float>(db2)};
}

}  // namespace

void bind_ffn(py::module_& module) {
    py::class_<RoutedRows>(module, "RoutedRows")
        .def(py::init(&routed_of), py::arg("source"), py::arg("offsets"), py::arg("experts"), py::arg("top_k"));
    py::class_<Experts>(module, "Experts")
        .def(py::init(&experts_of), py::arg("w1"), py::arg("b1"), py::arg("w2"), py::arg("b2"), py::arg("dim"),
             py::arg("hidden"));
    py::class_<FfnGradients>(module, "FfnGradients")
        .def(py::init(&gradients_of), py::arg("dx"), py::arg("dgate"), py::arg("dw1"), py::arg("db1"),
             py::arg("dw2"), py::arg("db2"));
    module.attr("ffn_width_step") = kWidthStep;
    module.def("ffn_instruction_sets", &instruction_sets_here);
    module.def(
        "ffn_forward",
        [](const RoutedRows& routed, const Experts& experts, std::uintptr_t x, std::uintptr_t gate, int threads,
           const std::string& instruction_set, std::uintptr_t y, std::uintptr_t pre) {
            ffn_forward(routed, experts, pointer<const float>(x), pointer<const float>(gate), threads,
                        kernels_called(instruction_set), pointer<float>(y), pointer<float>(pre));
        },
        py::call_guard<py::gil_scoped_release>());
    module.def(
        "ffn_backward",
        [](const RoutedRows& routed, const Experts& experts, std::uintptr_t dy, std::uintptr_t x,
           std::uintptr_t pre, std::uintptr_t gate, int threads, const std::string& instruction_set,
           const FfnGradients& gradients) {
            ffn_backward(routed, experts, pointer<const float>(dy), pointer<const float>(x),
                         pointer<const float>(pre), pointer<const float>(gate), threads,
                         kernels_called(instruction_set), gradients);
        },
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace crossearth
