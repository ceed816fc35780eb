// Packing of stored matrices on all threads.
#pragma once

#include <cstdint>
#include <memory>

#include "../quant/packed.h"

namespace puna {

// Packs `bytes` of stored blocks as a matrix; with `full_precision` products with it stay in float32. Pages of a mapped
// file are let go as soon as they are packed, so that the source never takes more memory than the pieces at work.
// The matrix gets a digest: BLAKE2bp over the BLAKE2bp digests of pieces of `piece_rows` stored rows.
// Throws std::invalid_argument when sizes do not fit together. Keeps nothing of `source`.
std::shared_ptr<PackedMatrix> pack_matrix(const Format& format, const uint8_t* source, int64_t bytes, int64_t rows,
                                          int64_t cols, bool full_precision, int threads);

// Whole panels of at least 64 KiB, which a core's second cache holds from hashing to packing.
int64_t piece_rows(int64_t row_bytes);

}  // namespace puna
