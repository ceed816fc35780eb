// Products in float32: F32, F16 and BF16 panels, and every format that has no integer tile, through panels of floats.
//
// One chain per output: acc = fma(w[k], x[k], acc), k ascending from 0. The whole of K is one pass: sums stay in
// registers, weights become floats on the way.
#include "matmul.h"

namespace puna::PUNA_NS {
namespace {

// ---- reading panels -------------------------------------------------------------------------------------------------

// The k-th column of a panel as floats; `Odd` tells whether k is.
struct F32Panels {
  static constexpr int64_t kBytesPerK = 64;
  template <bool Odd>
  PUNA_INLINE fvec column(const uint8_t* panel, int64_t k, int p) {
    return nload(reinterpret_cast<const float*>(panel) + kPanelRows * k + kNativeRows * p);
  }
};
struct F16Panels {
  static constexpr int64_t kBytesPerK = 32;
  template <bool Odd>
  PUNA_INLINE fvec column(const uint8_t* panel, int64_t k, int p) {
    return nload_f16(reinterpret_cast<const uint16_t*>(panel) + kPanelRows * k + kNativeRows * p);
  }
};
struct BF16Panels {
  static constexpr int64_t kBytesPerK = 32;
  template <bool Odd>
  PUNA_INLINE fvec column(const uint8_t* panel, int64_t k, int p) {
    const bvec both = bload(panel + 32 * (k - Odd) + 64 / kParts * p);
    if constexpr (Odd) return odd_bf16(both);
    else return even_bf16(both);
  }
};

// ---- tiles ----------------------------------------------------------------------------------------------------------

// One k of P neighbouring panels times T rows.
template <class S, bool Odd, int P, int T>
PUNA_INLINE void multiply_column(const uint8_t* const* base, const float* const* x, int64_t k, fvec (*acc)[T][kParts]) {
#pragma GCC unroll kUnroll
  for (int i = 0; i < P; ++i) {
    fvec w[kParts];
#pragma GCC unroll kUnroll
    for (int p = 0; p < kParts; ++p) w[p] = S::template column<Odd>(base[i], k, p);
#pragma GCC unroll kUnroll
    for (int t = 0; t < T; ++t) {
      const fvec value = nset1(x[t][k]);
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) acc[i][t][p] = fma(w[p], value, acc[i][t][p]);
    }
  }
}

// P neighbouring panels times T rows: out[P][T][16].
template <class S, int P, int T>
[[gnu::noinline]] void float_tile(const uint8_t* panel, int64_t panel_bytes, int64_t cols, const float* const* rows,
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
  int64_t k = 0;
  for (; k + 2 <= cols; k += 2) {
    // One and two rows take several panels at once, which keeps the hardware's prefetchers busy enough.
    if constexpr (kPrefetchBytes > 0 && P == 1 && T > 2) {
      const uint8_t* ahead = base[0] + k * S::kBytesPerK + kPrefetchBytes;
      for (int64_t line = 0; line < 2 * S::kBytesPerK; line += 64) __builtin_prefetch(ahead + line);
    }
    multiply_column<S, false, P, T>(base, x, k, acc);
    multiply_column<S, true, P, T>(base, x, k + 1, acc);
  }
  if (k < cols) multiply_column<S, false, P, T>(base, x, k, acc);
#pragma GCC unroll kUnroll
  for (int i = 0; i < P; ++i) {
#pragma GCC unroll kUnroll
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) nstore(out + kPanelRows * (T * i + t) + kNativeRows * p, acc[i][t][p]);
    }
  }
}

using FloatTile = void (*)(const uint8_t*, int64_t, int64_t, const float* const*, float*);
inline constexpr int kTileWidths[] = {1, 2, 4, kFloatRows};
struct FloatTiles {
  FloatTile wide[2];    // 4 and 2 panels times 1 and 2 rows: enough chains to hide the latency
  FloatTile single[4];  // one panel times kTileWidths rows
};
template <class S>
constexpr FloatTiles kFloatTiles = {
    {float_tile<S, 4, 1>, float_tile<S, 2, 2>},
    {float_tile<S, 1, 1>, float_tile<S, 1, 2>, float_tile<S, 1, 4>, float_tile<S, 1, kFloatRows>}};

// ---- products -------------------------------------------------------------------------------------------------------

// `panels` neighbouring panels from number `panel` on, whose weights are at `data`, times rows first … last-1.
void multiply_panels(const MatmulArgs& args, const FloatTiles& tiles, const uint8_t* data, int64_t panel_bytes,
                     int64_t panel, int64_t panels, int64_t first, int64_t last) {
  alignas(64) float acc[kMaxTileRows * kPanelRows];
  const float* rows[kMaxTileRows];
  for (; first < last; first += kFloatRows) {
    const int64_t count = last - first < kFloatRows ? last - first : kFloatRows;
    // A tile that is larger than the rest multiplies the last row again and drops the result.
    for (int64_t t = 0; t < kFloatRows; ++t) rows[t] = args.x + (first + (t < count ? t : count - 1)) * args.ldx;
    const int tile = tile_index(count);
    (panels > 1 ? tiles.wide[tile] : tiles.single[tile])(data, panel_bytes, args.cols, rows, acc);
    for (int64_t i = 0; i < panels; ++i) {
      finish_tile(args, panel + i, first, count, acc + kPanelRows * i * kTileWidths[tile]);
    }
  }
}

void panel_product(const MatmulArgs& args, const FloatTiles& tiles, int64_t panel_bytes, int64_t panel_begin,
                   int64_t panel_end) {
  const int64_t together = args.m == 1 ? 4 : args.m == 2 ? 2 : 1;
  int64_t chunk_rows = kRowChunkBytes / (args.cols * int64_t{sizeof(float)}) / kFloatRows * kFloatRows;
  if (chunk_rows < kFloatRows) chunk_rows = kFloatRows;
  for (int64_t first = 0; first < args.m; first += chunk_rows) {
    const int64_t last = args.m - first < chunk_rows ? args.m : first + chunk_rows;
    for (int64_t panel = panel_begin; panel < panel_end;) {
      const int64_t panels = panel_end - panel >= together ? together : 1;
      multiply_panels(args, tiles, args.packed + panel * panel_bytes, panel_bytes, panel, panels, first, last);
      panel += panels;
    }
  }
}

// Values that are dequantized at a time: whole blocks of every format.
inline constexpr int64_t kDequantized = 256;

// weights[cols][16]: a panel of stored blocks as floats, rows past the last one as zeros.
void dequantize_panel(const MatmulArgs& args, int64_t panel, float* weights) {
  const Format& format = *args.format;
  const int64_t row_bytes = args.cols / format.block_elements * format.block_bytes;
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const int64_t row = panel * kPanelRows + r;
    for (int64_t begin = 0; begin < args.cols; begin += kDequantized) {
      const int64_t count = args.cols - begin < kDequantized ? args.cols - begin : kDequantized;
      float values[kDequantized] = {};
      if (row < args.rows) {
        const int64_t offset = begin / format.block_elements * format.block_bytes;
        format.dequantize(args.packed + row * row_bytes + offset, count, values);
      }
      for (int64_t k = 0; k < count; ++k) weights[kPanelRows * (begin + k) + r] = values[k];
    }
  }
}

}  // namespace

int64_t float_scratch_floats(const MatmulArgs& args) {
  return args.kernel == Kernel::stored ? args.cols * kPanelRows : 0;
}

void float_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch) {
  const int64_t even_cols = (args.cols + 1) & ~int64_t{1};
  switch (args.kernel) {
    case Kernel::f32:
      panel_product(args, kFloatTiles<F32Panels>, args.cols * F32Panels::kBytesPerK, panel_begin, panel_end);
      return;
    case Kernel::f16:
      panel_product(args, kFloatTiles<F16Panels>, even_cols * F16Panels::kBytesPerK, panel_begin, panel_end);
      return;
    case Kernel::bf16:
      panel_product(args, kFloatTiles<BF16Panels>, even_cols * BF16Panels::kBytesPerK, panel_begin, panel_end);
      return;
    default:
      break;
  }
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    dequantize_panel(args, panel, scratch);
    multiply_panels(args, kFloatTiles<F32Panels>, reinterpret_cast<const uint8_t*>(scratch), 0, panel, 1, 0, args.m);
  }
}

}  // namespace puna::PUNA_NS
