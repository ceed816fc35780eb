// What the processor can do and the operating system lets programs use.
#pragma once

#include <string>
#include <vector>

namespace puna {

struct CpuFeatures {
  std::string vendor;               // as cpuid or /proc/cpuinfo gives it; empty where unknown
  std::string model;
  std::vector<std::string> names;   // of the features that matter to the variants: "avx2", "avx512_vnni", …
  bool avx2 = false;                // with fma and f16c
  bool avx512 = false;              // F, BW, DQ, VL and VNNI
  bool amx = false;                 // tiles, int8 and bf16, with the kernel's permission for this process
  bool bf16_dot = false;            // vdpbf16ps, and at twice the rate of float32 multiply-adds
  bool neon_dotprod = false;        // with half precision conversions and arithmetic
};

// Detected once.
const CpuFeatures& cpu_features();

}  // namespace puna
