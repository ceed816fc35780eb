// Packing of stored matrices on all threads.
#pragma once

#include <cstdint>
#include <memory>

#include "../quant/packed.h"

namespace puna {

// Packs `bytes` of stored blocks as a matrix; with `full_precision` products with it stay in float32.
// Throws std::invalid_argument when sizes do not fit together. Keeps nothing of `source`.
std::shared_ptr<PackedMatrix> pack_matrix(const Format& format, const uint8_t* source, int64_t bytes, int64_t rows,
                                          int64_t cols, bool full_precision, int threads);

}  // namespace puna
