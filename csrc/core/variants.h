// Which kernels this build has, which of them this machine can run, and which one is taken.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace puna {

// Names of the variants in this build, slowest first: "scalar", then "avx2", "avx512", "amx", or "neon". Builds
// for tests have "amx_emulated" behind "scalar".
std::vector<std::string> compiled_variants();

// Those among them that the processor and the operating system support.
std::vector<std::string> supported_variants();

// The last supported one, or what PUNA_VARIANT names.
// Throws std::runtime_error if that is not one of supported_variants().
std::string default_variant();

// The kernels of a variant. Throws std::invalid_argument for an unknown name and std::runtime_error for a variant that
// this machine cannot run.
const KernelTable& kernels_of(const std::string& variant);

}  // namespace puna
