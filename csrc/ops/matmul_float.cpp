// Products in float32: F32, F16 and BF16 panels, and every format that has no integer tile, through panels of floats.
//
// One chain per output: acc = fma(w[k], x[k], acc), k ascending from 0. A batch of few rows multiplies straight from the
// panels. A larger one goes through K in blocks: the weights of a block become floats once for all rows, the rows lie
// interleaved as the tile reads them, and the sums wait in memory for the next block, which does not change them.
#include "matmul.h"

namespace puna::PUNA_NS {
namespace {

inline constexpr int64_t kBlock = 256;       // k of a block: whole blocks of every format
inline constexpr int64_t kGroupPanels = 16;  // panels that share the interleaved rows
inline constexpr int kDirectRows = 4;        // largest batch that is multiplied straight from the panels

// ---- reading panels -------------------------------------------------------------------------------------------------

// Two consecutive k of a panel. `base` is the panel, `k` even.
struct F32Panels {
  static constexpr int64_t kBytesPerK = 64;
  PUNA_INLINE void two(const uint8_t* base, int64_t k, int p, fvec& even, fvec& odd) {
    const float* values = reinterpret_cast<const float*>(base) + kPanelRows * k + kNativeRows * p;
    even = nload(values);
    odd = nload(values + kPanelRows);
  }
};
struct F16Panels {
  static constexpr int64_t kBytesPerK = 32;
  PUNA_INLINE void two(const uint8_t* base, int64_t k, int p, fvec& even, fvec& odd) {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(base) + kPanelRows * k + kNativeRows * p;
    even = nload_f16(values);
    odd = nload_f16(values + kPanelRows);
  }
};
struct BF16Panels {
  static constexpr int64_t kBytesPerK = 32;
  PUNA_INLINE void two(const uint8_t* base, int64_t k, int p, fvec& even, fvec& odd) {
    const bvec both = bload(base + 32 * k + 64 / kParts * p);
    even = even_bf16(both);
    odd = odd_bf16(both);
  }
};

// ---- few rows -------------------------------------------------------------------------------------------------------

// P neighbouring panels times T rows: acc[P][T][16].
template <class S, int P, int T>
[[gnu::noinline]] void direct_tile(const uint8_t* panel, int64_t panel_bytes, int64_t cols, const float* const* rows,
                                   float* out) {
  fvec acc[P][T][kParts];
  const uint8_t* base[P];
  const float* x[T];
  for (int i = 0; i < P; ++i) base[i] = panel + panel_bytes * i;
  for (int t = 0; t < T; ++t) x[t] = rows[t];
#pragma GCC unroll kUnroll
  for (int i = 0; i < P; ++i) {
#pragma GCC unroll kUnroll
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) acc[i][t][p] = nset1(0.0f);
    }
  }
  const int64_t pairs_end = cols & ~int64_t{1};
  for (int64_t k = 0; k < pairs_end; k += 2) {
#pragma GCC unroll kUnroll
    for (int i = 0; i < P; ++i) {
      if constexpr (kPrefetchBytes > 0) __builtin_prefetch(base[i] + k * S::kBytesPerK + kPrefetchBytes);
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) {
        fvec even, odd;
        S::two(base[i], k, p, even, odd);
#pragma GCC unroll kUnroll
        for (int t = 0; t < T; ++t) {
          acc[i][t][p] = fma(even, nset1(x[t][k]), acc[i][t][p]);
          acc[i][t][p] = fma(odd, nset1(x[t][k + 1]), acc[i][t][p]);
        }
      }
    }
  }
  for (int i = 0; i < P; ++i) {
    for (int p = 0; p < kParts; ++p) {
      fvec even, odd;
      if (pairs_end < cols) {
        // F32 panels end with this k: read it alone.
        if constexpr (S::kBytesPerK == 64) {
          even = nload(reinterpret_cast<const float*>(base[i]) + kPanelRows * pairs_end + kNativeRows * p);
        } else {
          S::two(base[i], pairs_end, p, even, odd);
        }
      }
      for (int t = 0; t < T; ++t) {
        fvec sum = acc[i][t][p];
        if (pairs_end < cols) sum = fma(even, nset1(x[t][pairs_end]), sum);
        nstore(out + kPanelRows * (T * i + t) + kNativeRows * p, sum);
      }
    }
  }
}

using DirectTile = void (*)(const uint8_t*, int64_t, int64_t, const float* const*, float*);
struct DirectTiles {
  DirectTile wide[3];   // 4, 2, 1 panels times 1, 2, 4 rows: four chains each
  DirectTile single[3]; // one panel
};
template <class S>
constexpr DirectTiles kDirectTiles = {{direct_tile<S, 4, 1>, direct_tile<S, 2, 2>, direct_tile<S, 1, 4>},
                                      {direct_tile<S, 1, 1>, direct_tile<S, 1, 2>, direct_tile<S, 1, 4>}};

void direct_product(const MatmulArgs& args, const DirectTiles& tiles, int64_t panel_bytes, int64_t panel_begin,
                    int64_t panel_end) {
  const int index = args.m == 1 ? 0 : args.m == 2 ? 1 : 2;
  const int64_t width = kDirectRows >> index, tile_rows = 1 << index;
  const float* rows[kDirectRows];
  for (int64_t t = 0; t < kDirectRows; ++t) rows[t] = args.x + (t < args.m ? t : args.m - 1) * args.ldx;
  alignas(64) float acc[kDirectRows * kPanelRows];
  for (int64_t panel = panel_begin; panel < panel_end;) {
    const bool wide = panel_end - panel >= width;
    const int64_t count = wide ? width : 1;
    (wide ? tiles.wide : tiles.single)[index](args.packed + panel * panel_bytes, panel_bytes, args.cols, rows, acc);
    for (int64_t i = 0; i < count; ++i) finish_tile(args, panel + i, 0, args.m, acc + kPanelRows * tile_rows * i);
    panel += count;
  }
}

// ---- many rows ------------------------------------------------------------------------------------------------------

// sums[T][16] += weights[count][16] times x[count][T], or from 0 where `first`.
template <int T>
[[gnu::noinline]] void block_tile(const float* weights, const float* x, int64_t count, bool first, float* sums) {
  fvec acc[T][kParts];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
    for (int p = 0; p < kParts; ++p) acc[t][p] = first ? nset1(0.0f) : nload(sums + kPanelRows * t + kNativeRows * p);
  }
  for (int64_t k = 0; k < count; ++k, weights += kPanelRows, x += T) {
    fvec w[kParts];
#pragma GCC unroll kUnroll
    for (int p = 0; p < kParts; ++p) w[p] = nload(weights + kNativeRows * p);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const fvec value = nset1(x[t]);
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) acc[t][p] = fma(w[p], value, acc[t][p]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
    for (int p = 0; p < kParts; ++p) nstore(sums + kPanelRows * t + kNativeRows * p, acc[t][p]);
  }
}

using BlockTile = void (*)(const float*, const float*, int64_t, bool, float*);
template <int... T>
struct TileList {
  static constexpr BlockTile kTiles[] = {block_tile<T>...};
};
// As many rows as the registers hold: kFloatRows of the variant.
template <int N, int... T>
struct TilesUpTo : TilesUpTo<N - 1, N, T...> {};
template <int... T>
struct TilesUpTo<0, T...> : TileList<T...> {};

// weights[count][16]: k = begin … begin+count-1 of a panel as floats.
template <class S>
void convert_block(const uint8_t* panel, int64_t begin, int64_t count, float* weights) {
  for (int64_t k = 0; k < count; k += 2) {
    for (int p = 0; p < kParts; ++p) {
      fvec even, odd;
      S::two(panel, begin + k, p, even, odd);
      nstore(weights + kPanelRows * k + kNativeRows * p, even);
      nstore(weights + kPanelRows * (k + 1) + kNativeRows * p, odd);
    }
  }
}

void dequantize_block(const MatmulArgs& args, int64_t panel, int64_t begin, int64_t count, float* weights) {
  const Format& format = *args.format;
  const int64_t row_bytes = args.cols / format.block_elements * format.block_bytes;
  const int64_t offset = begin / format.block_elements * format.block_bytes;
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const int64_t row = panel * kPanelRows + r;
    float values[kBlock] = {};
    if (row < args.rows) format.dequantize(args.packed + row * row_bytes + offset, count, values);
    for (int64_t k = 0; k < count; ++k) weights[kPanelRows * k + r] = values[k];
  }
}

// A block of a panel as floats: in place where the panel holds floats, else in `scratch`.
const float* block_weights(const MatmulArgs& args, int64_t panel, int64_t begin, int64_t count, float* scratch) {
  const int64_t even_cols = (args.cols + 1) & ~int64_t{1};
  switch (args.kernel) {
    case Kernel::f32:
      return reinterpret_cast<const float*>(args.packed) + (panel * args.cols + begin) * kPanelRows;
    case Kernel::f16:
      convert_block<F16Panels>(args.packed + panel * even_cols * 32, begin, count, scratch);
      return scratch;
    case Kernel::bf16:
      convert_block<BF16Panels>(args.packed + panel * even_cols * 32, begin, count, scratch);
      return scratch;
    default:
      dequantize_block(args, panel, begin, count, scratch);
      return scratch;
  }
}

// Rows first … first+rows-1 of x, columns begin …, as tiles [tile][count][T]; a last, smaller tile has its own T.
void interleave(const MatmulArgs& args, int64_t first, int64_t rows, int64_t begin, int64_t count, float* x) {
  for (int64_t tile = 0; tile < rows; tile += kFloatRows, x += kFloatRows * count) {
    const int64_t width = rows - tile < kFloatRows ? rows - tile : kFloatRows;
    for (int64_t t = 0; t < width; ++t) {
      const float* source = args.x + (first + tile + t) * args.ldx + begin;
      for (int64_t k = 0; k < count; ++k) x[k * width + t] = source[k];
    }
  }
}

struct Scratch {
  float *x, *weights, *sums;
};
int64_t chunk_rows(const MatmulArgs& args) { return args.m < kRowChunk ? args.m : kRowChunk; }

void blocked_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, const Scratch& scratch) {
  for (int64_t chunk = 0; chunk < args.m; chunk += kRowChunk) {
    const int64_t rows = args.m - chunk < kRowChunk ? args.m - chunk : kRowChunk;
    for (int64_t group = panel_begin; group < panel_end; group += kGroupPanels) {
      const int64_t group_end = panel_end - group < kGroupPanels ? panel_end : group + kGroupPanels;
      for (int64_t begin = 0; begin < args.cols; begin += kBlock) {
        const int64_t count = args.cols - begin < kBlock ? args.cols - begin : kBlock;
        interleave(args, chunk, rows, begin, count, scratch.x);
        for (int64_t panel = group; panel < group_end; ++panel) {
          const float* weights = block_weights(args, panel, begin, count, scratch.weights);
          float* sums = scratch.sums + (panel - group) * rows * kPanelRows;
          for (int64_t first = 0; first < rows; first += kFloatRows) {
            const int64_t width = rows - first < kFloatRows ? rows - first : kFloatRows;
            TilesUpTo<kFloatRows>::kTiles[width - 1](weights, scratch.x + first * count, count, begin == 0,
                                                     sums + first * kPanelRows);
          }
        }
      }
      for (int64_t panel = group; panel < group_end; ++panel) {
        finish_tile(args, panel, chunk, rows, scratch.sums + (panel - group) * rows * kPanelRows);
      }
    }
  }
}

}  // namespace

int64_t float_scratch_floats(const MatmulArgs& args) {
  return kBlock * kPanelRows + chunk_rows(args) * (kBlock + kGroupPanels * kPanelRows) + 3 * kPanelRows;
}

void float_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch) {
  if (args.m <= kDirectRows && args.m > 0) {
    const int64_t even_cols = (args.cols + 1) & ~int64_t{1};
    switch (args.kernel) {
      case Kernel::f32:
        direct_product(args, kDirectTiles<F32Panels>, args.cols * 64, panel_begin, panel_end);
        return;
      case Kernel::f16:
        direct_product(args, kDirectTiles<F16Panels>, even_cols * 32, panel_begin, panel_end);
        return;
      case Kernel::bf16:
        direct_product(args, kDirectTiles<BF16Panels>, even_cols * 32, panel_begin, panel_end);
        return;
      default:
        break;
    }
  }
  const int64_t x_floats = (chunk_rows(args) * kBlock + kPanelRows - 1) / kPanelRows * kPanelRows;
  float* weights = scratch + x_floats;
  blocked_product(args, panel_begin, panel_end, {scratch, weights, weights + kBlock * kPanelRows});
}

}  // namespace puna::PUNA_NS
