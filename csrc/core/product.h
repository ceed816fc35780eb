// Matrix products of one operand with several matrices, divided among threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../quant/packed.h"
#include "worker.h"

namespace puna {

// The arguments of one matrix's product, complete but for operand, rows and output.
MatmulArgs product_args(const PackedMatrix& matrix);

// Has activations that the product rounds taken more exactly: to int8 in two terms, to bfloat16 not at all.
void take_exactly(MatmulArgs& args);

// The panels of the products `segments`, which share their operand, one segment after the other.
Work product_work(std::span<const MatmulArgs> segments);

// Panels begin … end-1 of them. Worker::scratch must have scratch_floats() of the largest segment.
void run_products(const Worker& worker, std::span<const MatmulArgs> segments, int64_t begin, int64_t end);

// out[m, sum of rows] = x[m, cols] times all matrices, which must have equal columns and partners; on `threads` threads.
// With `two_terms`, activations are taken as take_exactly() says.
// Throws std::invalid_argument.
std::vector<float> multiply(const KernelTable& kernels, std::span<const PackedMatrix* const> matrices, const float* x,
                            int64_t m, int threads, bool two_terms);

}  // namespace puna
