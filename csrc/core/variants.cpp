#include "variants.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu_features.h"

namespace puna {
namespace {

struct Variant {
  const KernelTable* table;
  bool (*is_supported)(const CpuFeatures&);
  const char* needs;
};

constexpr Variant kVariants[] = {
    {&scalar::kTable, [](const CpuFeatures&) { return true; }, "nothing"},
#if defined(__x86_64__)
    {&avx2::kTable, [](const CpuFeatures& cpu) { return cpu.avx2; }, "AVX2, FMA and F16C"},
    {&avx512::kTable, [](const CpuFeatures& cpu) { return cpu.avx512; }, "AVX-512 F, BW, DQ, VL and VNNI"},
    {&amx::kTable, [](const CpuFeatures& cpu) { return cpu.amx; }, "AMX (tile, int8, bf16) and AVX-512"},
#else
    {&neon::kTable, [](const CpuFeatures& cpu) { return cpu.neon_dotprod; }, "NEON with fp16 and dot product"},
#endif
};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> compiled_variants() {
  std::vector<std::string> names;
  for (const Variant& variant : kVariants) names.emplace_back(variant.table->name);
  return names;
}

std::vector<std::string> supported_variants() {
  std::vector<std::string> names;
  for (const Variant& variant : kVariants) {
    if (variant.is_supported(cpu_features())) names.emplace_back(variant.table->name);
  }
  return names;
}

std::string default_variant() {
  const char* forced = std::getenv("PUNA_VARIANT");
  if (forced == nullptr || *forced == '\0') return supported_variants().back();
  try {
    return kernels_of(forced).name;
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string("PUNA_VARIANT: ") + error.what());
  }
}

const KernelTable& kernels_of(const std::string& name) {
  for (const Variant& variant : kVariants) {
    if (name != variant.table->name) continue;
    if (variant.is_supported(cpu_features())) return *variant.table;
    throw std::runtime_error("variant '" + name + "' needs " + variant.needs +
                             ", which this machine does not have; it can run: " + joined(supported_variants()));
  }
  throw std::invalid_argument("unknown variant '" + name + "'; this build has: " + joined(compiled_variants()));
}

}  // namespace puna
