// Products of the integer formats: which tile belongs to which format, and the walk over panels and rows.
#include "matmul.h"

#include "../quant/a8.h"
#include "../quant/iq4.h"
#include "../quant/q4.h"
#include "../quant/q4_q5_k.h"
#include "../quant/q5.h"
#include "../quant/q6_k.h"
#include "../quant/q8.h"

#ifdef PUNA_VARIANT_AVX2
#include "dot_deferred.h"
#else
#include "dot_direct.h"
#endif

namespace puna::PUNA_NS {
namespace {

// Several rows as one tile; row by row where nothing is gained from sharing the weights and compilers struggle.
template <class W, int T>
void tile_of(const uint8_t* panel, int64_t units, const uint8_t* const* rows, float* acc) {
  if constexpr (kUnroll > 1) {
    integer_tile<W, T>(panel, units, rows, acc);
  } else {
    for (int t = 0; t < T; ++t) integer_tile<W, 1>(panel, units, rows + t, acc + kPanelRows * t);
  }
}

template <class W>
IntegerTiles tiles() {
  return {W::kUnitElements, W::kUnitBytes, {tile_of<W, 1>, tile_of<W, 2>, tile_of<W, 4>, tile_of<W, 8>}};
}

// acc[r] = acc[2r] + acc[2r + 1], for `rows` pairs.
void add_pairs(float* acc, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* pair = acc + 2 * kPanelRows * row;
    store(acc + kPanelRows * row, add(load(pair), load(pair + kPanelRows)));
  }
}

}  // namespace

IntegerTiles integer_tiles(Kernel kernel) {
  switch (kernel) {
    case Kernel::q4_0: return tiles<Q4_0Weights>();
    case Kernel::q4_1: return tiles<Q4_1Weights>();
    case Kernel::q5_0: return tiles<Q5_0Weights>();
    case Kernel::q5_1: return tiles<Q5_1Weights>();
    case Kernel::q8_0: return tiles<Q8_0Weights>();
    case Kernel::iq4_nl: return tiles<IQ4_NLWeights>();
    case Kernel::q4_k: return tiles<Q4_KWeights>();
    case Kernel::q5_k: return tiles<Q5_KWeights>();
    case Kernel::q6_k: return tiles<Q6_KWeights>();
    case Kernel::iq4_xs: return tiles<IQ4_XSWeights>();
    default: __builtin_unreachable();
  }
}

void integer_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end) {
  const IntegerTiles tiles = integer_tiles(args.kernel);
  const int64_t units = (args.cols + tiles.unit_elements - 1) / tiles.unit_elements;
  const int64_t panel_bytes = units * tiles.unit_bytes, row_bytes = a8_row_bytes(args.cols);
  int64_t chunk_rows = kRowChunkBytes / row_bytes / kMaxTileRows * kMaxTileRows;
  if (chunk_rows < kMaxTileRows) chunk_rows = kMaxTileRows;
  const int64_t terms = args.two_terms ? 2 : 1, m = args.m * terms;  // chunks and tiles hold both rows of a pair
  alignas(64) float acc[kMaxTileRows * kPanelRows];
  for (int64_t chunk = 0; chunk < m; chunk += chunk_rows) {
    const int64_t chunk_end = m - chunk < chunk_rows ? m : chunk + chunk_rows;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for (int64_t first = chunk; first < chunk_end; first += kMaxTileRows) {
        const int64_t rows = chunk_end - first < kMaxTileRows ? chunk_end - first : kMaxTileRows;
        // A tile that is larger than the rest multiplies the last row again and drops the result.
        const uint8_t* row[kMaxTileRows];
        for (int64_t t = 0; t < kMaxTileRows; ++t) row[t] = args.a8 + (first + (t < rows ? t : rows - 1)) * row_bytes;
        tiles.tile[tile_index(rows)](args.packed + panel * panel_bytes, units, row, acc);
        if (args.two_terms) add_pairs(acc, rows / 2);
        finish_tile(args, panel, first / terms, rows / terms, acc);
      }
    }
  }
}

}  // namespace puna::PUNA_NS
