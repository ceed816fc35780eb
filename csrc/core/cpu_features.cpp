#include "cpu_features.h"

#include <cstdint>
#include <cstring>
#include <fstream>

#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace puna {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

// The register states that the operating system saves on a switch (XCR0).
uint64_t saved_states() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Tile data is off until a process asks for it; the permission covers the threads that it starts afterwards.
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::string model_name() {
  if (cpuid(0x80000000u).eax < 0x80000004u) return {};
  char name[49] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i);
    std::memcpy(name + 16 * i, &r.eax, 4);
    std::memcpy(name + 16 * i + 4, &r.ebx, 4);
    std::memcpy(name + 16 * i + 8, &r.ecx, 4);
    std::memcpy(name + 16 * i + 12, &r.edx, 4);
  }
  std::string text(name);
  while (!text.empty() && text.back() == ' ') text.pop_back();
  const size_t begin = text.find_first_not_of(' ');
  return begin == std::string::npos ? std::string() : text.substr(begin);
}

CpuFeatures detect() {
  CpuFeatures found;
  const Registers vendor = cpuid(0);
  char text[13] = {};
  std::memcpy(text, &vendor.ebx, 4);
  std::memcpy(text + 4, &vendor.edx, 4);
  std::memcpy(text + 8, &vendor.ecx, 4);
  found.vendor = text;
  found.model = model_name();

  const Registers basic = cpuid(1), extended = cpuid(7), more = cpuid(7, 1);
  const bool has_xsave = (basic.ecx >> 27) & 1u;
  const uint64_t saved = has_xsave ? saved_states() : 0;
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;

  struct Feature {
    const char* name;
    bool is_present;
  };
  const Feature features[] = {
      {"fma", ymm && ((basic.ecx >> 12) & 1u)},
      {"f16c", ymm && ((basic.ecx >> 29) & 1u)},
      {"avx2", ymm && ((extended.ebx >> 5) & 1u)},
      {"avx512f", zmm && ((extended.ebx >> 16) & 1u)},
      {"avx512dq", zmm && ((extended.ebx >> 17) & 1u)},
      {"avx512bw", zmm && ((extended.ebx >> 30) & 1u)},
      {"avx512vl", zmm && ((extended.ebx >> 31) & 1u)},
      {"avx512_vnni", zmm && ((extended.ecx >> 11) & 1u)},
      {"avx512_bf16", zmm && ((more.eax >> 5) & 1u)},
      {"amx_bf16", tiles && ((extended.edx >> 22) & 1u)},
      {"amx_tile", tiles && ((extended.edx >> 24) & 1u)},
      {"amx_int8", tiles && ((extended.edx >> 25) & 1u)},
  };
  const auto all = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      if (!features[i].is_present) return false;
    }
    return true;
  };
  for (const Feature& feature : features) {
    if (feature.is_present) found.names.emplace_back(feature.name);
  }
  found.avx2 = all(0, 3);
  found.avx512 = all(0, 8);
  // On Intel's processors vdpbf16ps takes as long as four multiply-adds (measured on Sapphire Rapids).
  found.bf16_dot = found.avx512 && features[8].is_present && found.vendor == "AuthenticAMD";
  found.amx = all(0, 8) && all(9, 12) && may_use_tiles();
  return found;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
  CpuFeatures found;
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    if (found.vendor.empty() && line.starts_with("CPU implementer")) found.vendor = line.substr(colon + 2);
    if (found.model.empty() && line.starts_with("CPU part")) found.model = line.substr(colon + 2);
  }
  const unsigned long capabilities = getauxval(AT_HWCAP);
  struct Feature {
    const char* name;
    unsigned long bit;
  };
  constexpr Feature features[] = {
      {"asimd", HWCAP_ASIMD}, {"fphp", HWCAP_FPHP}, {"asimdhp", HWCAP_ASIMDHP}, {"asimddp", HWCAP_ASIMDDP}};
  bool has_all = true;
  for (const Feature& feature : features) {
    const bool is_present = (capabilities & feature.bit) != 0;
    has_all = has_all && is_present;
    if (is_present) found.names.emplace_back(feature.name);
  }
  found.neon_dotprod = has_all;
  return found;
}

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace puna
