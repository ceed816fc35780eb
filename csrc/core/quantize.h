// Quantization of float32 matrices on all threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel_table.h"

namespace puna {

// Rows of x as a format stores them: one that has `encode`, or F32, F16 or BF16 (rounded to nearest even). `importance`:
// a weight of the squared error per column, none of them negative, or null. The bytes are the same whatever the number of
// threads and the variant.
// Throws std::invalid_argument for a format that has no quantizer, sizes that do not fit together, an importance that is
// negative or not finite or zero everywhere, and for values that are not finite or that the format does not hold; rows
// in the message are counted from `first_row`.
std::vector<uint8_t> quantize_rows(const KernelTable& kernels, const Format& format, const float* x, int64_t rows,
                                   int64_t cols, const float* importance, int64_t first_row, int threads);

}  // namespace puna
