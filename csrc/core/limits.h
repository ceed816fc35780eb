// What this machine can do at most, measured.
#pragma once

#include "kernel_table.h"

namespace puna {

struct Limits {
  double read_gbps = 0;   // reading memory that is in no cache
  double f32_gflops = 0;  // float32 multiply-adds in registers
  double int8_gops = 0;   // products of bytes, added up, likewise
};

// Takes about `seconds`. Throws std::invalid_argument for a time outside 0.01 … 60.
Limits measure_limits(const KernelTable& kernels, double seconds, int threads);

}  // namespace puna
