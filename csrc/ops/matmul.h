// The matrix products of a variant; see KernelTable and MatmulArgs in core/kernel_table.h.
//
// The order of every sum depends on K only (the headers of csrc/quant say how): an output has the same bits whatever
// the other rows, the ranges, the threads and the variant.
#pragma once

#include "../core/kernel_table.h"
#include "../simd/simd.h"

namespace puna::PUNA_NS {

void matmul(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch);
int64_t matmul_scratch_floats(const MatmulArgs& args);

// ---- between the files of the product -------------------------------------------------------------------------------

// Float32 tiles multiply 1, 2, 4 or at most kMaxTileRows rows of x at a time; the rest of a batch takes the smallest that holds
// it.
inline constexpr int kMaxTileRows = 8;
PUNA_INLINE int tile_index(int64_t rows) { return rows >= 5 ? 3 : rows >= 3 ? 2 : rows == 2 ? 1 : 0; }

// Bytes of x that are multiplied by a panel before the next panel is read: they stay in the second-level cache.
inline constexpr int64_t kRowChunkBytes = 262144;

// How the integer formats are multiplied: out[panels][rows][16] = neighbouring panels, `panel_bytes` each, times rows of
// a8, `row_bytes` apart.
struct IntegerOperands {
  const uint8_t* panel;
  int64_t panel_bytes, units;
  const uint8_t* x;
  int64_t row_bytes, rows;
};
// At once: rows that a pass over a panel multiplies, and panels.
inline constexpr int kPassRows = 64, kMaxPanels = 2;

void integer_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end);
void float_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch);
int64_t float_scratch_floats(const MatmulArgs& args);

// acc[r] = acc[2r] + acc[2r + 1], for `rows` pairs: the two terms of rows.
void add_pairs(float* acc, int64_t rows);
// A row of x as bfloat16, rounded to nearest even, and zeros up to `floats` pairs.
void round_to_pairs(const float* x, int64_t cols, float* pairs, int64_t floats);

#ifdef PUNA_HAS_TILES
// With few rows, integer formats do not gain from tiles. BF16 always takes them: they have an order of their own.
bool takes_tiles(const MatmulArgs& args);
int64_t tiled_scratch_floats(const MatmulArgs& args);
void tiled_integer_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch);
void tiled_bf16_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch);
#endif

// Bias, clip, multiplier and residual: acc[rows][16] of a panel, for rows first_row …, into args.out.
void finish_tile(const MatmulArgs& args, int64_t panel, int64_t first_row, int64_t rows, const float* acc);

}  // namespace puna::PUNA_NS
