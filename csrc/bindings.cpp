// The module puna._native.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/variants.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
  m.doc() = "Kernels, packed weights and programs of Puna.";
  m.def("compiled_variants", &puna::compiled_variants);
  m.def("supported_variants", &puna::supported_variants);
  m.def("default_variant", &puna::default_variant);
}
