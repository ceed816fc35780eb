#include "variants.h"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "cpu_features.h"
#include "thread_pool.h"

namespace puna {
namespace {

struct Variant {
  const KernelTable* table;
  bool (*is_supported)(const CpuFeatures&);
  const char* needs;
};

#if defined(__x86_64__)
// Tried once: a processor or a hypervisor whose tiles are wrong must not give wrong text.
bool has_working_tiles() {
  static const bool works = [] {
    const FlushSubnormals flush;
    if (amx::tiles_work()) return true;
    std::fprintf(stderr, "puna: warning: this machine's AMX instructions give wrong results; using AVX-512 instead\n");
    return false;
  }();
  return works;
}
#endif

constexpr Variant kVariants[] = {
    {&scalar::kTable, [](const CpuFeatures&) { return true; }, "nothing"},
#if defined(__x86_64__)
#ifdef PUNA_HAS_EMULATED_TILES
    {&amx_emulated::kTable, [](const CpuFeatures& cpu) { return cpu.avx512; }, "AVX-512 F, BW, DQ, VL and VNNI"},
#endif
    {&avx2::kTable, [](const CpuFeatures& cpu) { return cpu.avx2; }, "AVX2, FMA and F16C"},
    {&avx512::kTable, [](const CpuFeatures& cpu) { return cpu.avx512; }, "AVX-512 F, BW, DQ, VL and VNNI"},
    {&amx::kTable, [](const CpuFeatures& cpu) { return cpu.amx && has_working_tiles(); },
     "AMX (tile, int8, bf16) that works, and AVX-512"},
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
