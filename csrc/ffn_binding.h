#pragma once

#include <pybind11/pybind11.h>

namespace crossearth {

void bind_ffn(pybind11::module_& module);

}  // namespace crossearth
