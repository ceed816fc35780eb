// Calls of single kernels with operands that end where they end, in the ways in which programs may call them: all rows
// at once, some of them, in place, into codes.
#pragma once

#include "case_file.h"
#include "core/kernel_table.h"

namespace puna::replay {

// Runs one recorded call on one variant; whether every result has the recorded bits.
bool run_call(const Call& call, const KernelTable& kernels);

// One each; for run_call. Fields are read from the lines that tests/support/kernel_cases.py writes.
bool check_dequantize(const Call& call, const KernelTable& kernels);
bool check_quantize(const Call& call, const KernelTable& kernels);
bool check_matmul(const Call& call, const KernelTable& kernels);
bool check_norm(const Call& call, const KernelTable& kernels);
bool check_softcap(const Call& call, const KernelTable& kernels);
bool check_glu(const Call& call, const KernelTable& kernels);
bool check_add(const Call& call, const KernelTable& kernels);
bool check_scale(const Call& call, const KernelTable& kernels);
bool check_clamp(const Call& call, const KernelTable& kernels);
bool check_rope_kv(const Call& call, const KernelTable& kernels);
bool check_attention(const Call& call, const KernelTable& kernels);

const Format& format_of(const Call& call);

// Operands that kernels read from a cache line on.
inline constexpr int64_t kAligned = 64;

}  // namespace puna::replay
