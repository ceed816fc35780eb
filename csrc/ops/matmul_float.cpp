// Products in float32: F32, F16 and BF16 panels, and every format that has no integer tile, through panels of floats.
//
// One chain per output: acc = fma(w[k], x[k], acc), k ascending from 0; for BF16 with x rounded to bfloat16 and k in the
// order 1, 0, 3, 2 … (quant/float_formats.h). The whole of K is one pass: sums stay in registers, weights become floats
// on the way.
#include "matmul.h"

namespace puna::PUNA_NS {
namespace {

// ---- reading panels -------------------------------------------------------------------------------------------------

// The k-th column of a panel as floats; `Odd` tells whether k is.
struct F32Panels {
  static constexpr int64_t kBytesPerK = 64;
  static constexpr bool kOddFirst = false;
  template <bool Odd>
  PUNA_INLINE fvec column(const uint8_t* panel, int64_t k, int p) {
    return nload(reinterpret_cast<const float*>(panel) + kPanelRows * k + kNativeRows * p);
  }
};
struct F16Panels {
  static constexpr int64_t kBytesPerK = 32;
  static constexpr bool kOddFirst = false;
  template <bool Odd>
  PUNA_INLINE fvec column(const uint8_t* panel, int64_t k, int p) {
    return nload_f16(reinterpret_cast<const uint16_t*>(panel) + kPanelRows * k + kNativeRows * p);
  }
};
template <bool OddFirst>
struct BF16Panels {
  static constexpr int64_t kBytesPerK = 32;
  static constexpr bool kOddFirst = OddFirst;
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
  fvec w[P][kParts];
#pragma GCC unroll kUnroll
  for (int i = 0; i < P; ++i) {
#pragma GCC unroll kUnroll
    for (int p = 0; p < kParts; ++p) w[i][p] = S::template column<Odd>(base[i], k, p);
  }
#pragma GCC unroll kUnroll
  for (int t = 0; t < T; ++t) {
    const fvec value = nset1(x[t][k]);
#pragma GCC unroll kUnroll
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) acc[i][t][p] = fma(w[i][p], value, acc[i][t][p]);
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
    // With one and two rows the hardware's prefetchers are enough.
    if constexpr (kPrefetchBytes > 0 && T > 2) {
#pragma GCC unroll kUnroll
      for (int i = 0; i < P; ++i) {
        const uint8_t* ahead = base[i] + k * S::kBytesPerK + kPrefetchBytes;
        for (int64_t line = 0; line < 2 * S::kBytesPerK; line += 64) __builtin_prefetch(ahead + line);
      }
    }
    if constexpr (S::kOddFirst) multiply_column<S, true, P, T>(base, x, k + 1, acc);
    multiply_column<S, false, P, T>(base, x, k, acc);
    if constexpr (!S::kOddFirst) multiply_column<S, true, P, T>(base, x, k + 1, acc);
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

// Tiles for 1, 2 and 4 panels, by tile_index. With few rows, several panels keep the hardware's prefetchers busy and are
// chains enough to hide the latency of additions; with many, a value of x serves as many panels as there are registers
// for.
using FloatTile = void (*)(const uint8_t*, int64_t, int64_t, const float* const*, float*);
inline constexpr int kTileWidths[] = {1, 2, 4, kFloatRows};
constexpr bool is_tile(int panels, int rows) { return panels * rows <= 4 || panels <= kFloatPanels; }
constexpr int64_t panels_together(int64_t m) { return m == 1 ? 4 : m == 2 ? 2 : kFloatPanels; }
// Rows of the next tile of `rest`: 4 and 4 are faster than 6 and 2.
constexpr int64_t rows_of_tile(int64_t rest) {
  return rest <= kFloatRows ? rest : rest <= 8 ? 4 : kFloatRows;
}
struct FloatTiles {
  FloatTile tile[3][4];
  FloatTile of(int64_t panels, int index) const { return tile[panels / 2][index]; }
};
template <class S, int P, int T>
constexpr FloatTile float_tile_or_none() {
  if constexpr (is_tile(P, T)) return float_tile<S, P, T>;
  else return nullptr;
}
template <class S>
constexpr FloatTiles float_tiles() {
  return {{{float_tile_or_none<S, 1, 1>(), float_tile_or_none<S, 1, 2>(), float_tile_or_none<S, 1, 4>(),
            float_tile_or_none<S, 1, kFloatRows>()},
           {float_tile_or_none<S, 2, 1>(), float_tile_or_none<S, 2, 2>(), float_tile_or_none<S, 2, 4>(),
            float_tile_or_none<S, 2, kFloatRows>()},
           {float_tile_or_none<S, 4, 1>()}}};
}
template <class S>
constexpr FloatTiles kFloatTiles = float_tiles<S>();

#ifdef PUNA_HAS_BF16_DOT

// As float_tile, on rows of bfloat16, for processors whose vdpbf16ps is fast: per lane and pair it is
// acc = fma(w[0], x[0], fma(w[1], x[1], acc)) with subnormals as zeros, which is float_tile's chain in a worker.
template <int P, int T>
[[gnu::noinline, gnu::target("avx512bf16")]] void pair_tile(const uint8_t* panel, int64_t panel_bytes, int64_t cols,
                                                            const float* const* rows, float* out) {
  __m512 acc[P][T];
  const float* x[T];
  for (int t = 0; t < T; ++t) x[t] = rows[t];
#pragma GCC unroll kUnroll
  for (int i = 0; i < P; ++i) {
#pragma GCC unroll kUnroll
    for (int t = 0; t < T; ++t) acc[i][t] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < cols / 2; ++k) {
    const uint8_t* pair = panel + 64 * k;
    __m512bh w[P];
#pragma GCC unroll kUnroll
    for (int i = 0; i < P; ++i) {
      if constexpr (T > 2) __builtin_prefetch(pair + panel_bytes * i + kPrefetchBytes);
      w[i] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(pair + panel_bytes * i));
    }
#pragma GCC unroll kUnroll
    for (int t = 0; t < T; ++t) {
      const __m512bh value = reinterpret_cast<__m512bh>(_mm512_set1_ps(x[t][k]));
#pragma GCC unroll kUnroll
      for (int i = 0; i < P; ++i) acc[i][t] = _mm512_dpbf16_ps(acc[i][t], w[i], value);
    }
  }
#pragma GCC unroll kUnroll
  for (int i = 0; i < P; ++i) {
#pragma GCC unroll kUnroll
    for (int t = 0; t < T; ++t) _mm512_storeu_ps(out + kPanelRows * (T * i + t), acc[i][t]);
  }
}
constexpr FloatTiles kPairTiles = {{{pair_tile<1, 1>, pair_tile<1, 2>, pair_tile<1, 4>, pair_tile<1, kFloatRows>},
                                    {pair_tile<2, 1>, pair_tile<2, 2>, pair_tile<2, 4>, pair_tile<2, kFloatRows>},
                                    {pair_tile<4, 1>}}};

#endif

// ---- operands -------------------------------------------------------------------------------------------------------

// Rows of x as the tiles read them: as they are, or rounded to bfloat16, a chunk at a time, into scratch.
enum class Rounding : uint8_t { none, to_float, to_pairs };

Rounding rounding_of(const MatmulArgs& args) {
  if (args.kernel != Kernel::bf16) return Rounding::none;
#ifdef PUNA_HAS_BF16_DOT
  if (args.has_bf16_dot) return Rounding::to_pairs;
#endif
  return Rounding::to_float;
}

// Floats from one rounded row to the next: an odd number of cache lines, so that rows do not meet in the same sets.
int64_t rounded_floats(const MatmulArgs& args, Rounding rounding) {
  const int64_t floats = rounding == Rounding::to_pairs ? (args.cols + 1) / 2 : args.cols + 1;
  return ((floats + 15) / 16 | 1) * 16;
}

int64_t chunk_rows(const MatmulArgs& args, Rounding rounding) {
  const int64_t row_floats = rounding == Rounding::none ? args.cols : rounded_floats(args, rounding);
  const int64_t rows = kRowChunkBytes / (row_floats * int64_t{sizeof(float)}) / kFloatRows * kFloatRows;
  const int64_t most = rows < kFloatRows ? kFloatRows : rows;
  return args.m < most ? args.m : most;
}

// One row of floats rounded to bfloat16, with a zero for what fills it up to pairs.
void round_to_floats(const float* x, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; k += kPanelRows) {
    uint16_t rounded[kPanelRows];
    store_bf16(rounded, cols - k < kPanelRows ? load_n(x + k, static_cast<int>(cols - k)) : load(x + k));
    store(out + k, load_bf16(rounded));
  }
  if (cols % kPanelRows == 0) out[cols] = 0.0f;
}

// ---- products -------------------------------------------------------------------------------------------------------

struct FloatRows {
  const float* x;
  int64_t ld;
  int64_t cols;  // of weights and of x
};

// `panels` neighbouring panels from number `panel` on, whose weights are at `data`, times rows first … last-1 of the
// product, the first of which is x's first.
void multiply_panels(const MatmulArgs& args, const FloatTiles& tiles, const FloatRows& x, const uint8_t* data,
                     int64_t panel_bytes, int64_t panel, int64_t panels, int64_t first, int64_t last) {
  alignas(64) float acc[kFloatPanels * kMaxTileRows * kPanelRows];
  const float* rows[kMaxTileRows];
  for (int64_t row = first, count; row < last; row += count) {
    count = rows_of_tile(last - row);
    // A tile that is larger than the rest multiplies the last row again and drops the result.
    for (int64_t t = 0; t < kFloatRows; ++t) rows[t] = x.x + (row - first + (t < count ? t : count - 1)) * x.ld;
    const int tile = tile_index(count);
    tiles.of(panels, tile)(data, panel_bytes, x.cols, rows, acc);
    for (int64_t i = 0; i < panels; ++i) {
      finish_tile(args, panel + i, row, count, acc + kPanelRows * i * kTileWidths[tile]);
    }
  }
}

void panel_product(const MatmulArgs& args, const FloatTiles& tiles, int64_t panel_bytes, int64_t panel_begin,
                   int64_t panel_end, float* scratch) {
  const int64_t together = panels_together(args.m);
  const Rounding rounding = rounding_of(args);
  const int64_t even_cols = (args.cols + 1) & ~int64_t{1}, step = chunk_rows(args, rounding);
  for (int64_t first = 0; first < args.m; first += step) {
    const int64_t last = args.m - first < step ? args.m : first + step;
    FloatRows x = {args.x + first * args.ldx, args.ldx, args.cols};
    if (rounding != Rounding::none) {
      x = {scratch, rounded_floats(args, rounding), even_cols};
      for (int64_t row = first; row < last; ++row) {
        const float* from = args.x + row * args.ldx;
        float* to = scratch + (row - first) * x.ld;
        if (rounding == Rounding::to_pairs) round_to_pairs(from, args.cols, to, x.ld);
        else round_to_floats(from, args.cols, to);
      }
    }
    for (int64_t panel = panel_begin; panel < panel_end;) {
      const int64_t panels = panel_end - panel >= together ? together : 1;
      multiply_panels(args, tiles, x, args.packed + panel * panel_bytes, panel_bytes, panel, panels, first, last);
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

void round_to_pairs(const float* x, int64_t cols, float* pairs, int64_t floats) {
  int64_t k = 0;
  for (; k < cols; k += kPanelRows) {
    uint16_t rounded[kPanelRows];
    store_bf16(rounded, cols - k < kPanelRows ? load_n(x + k, static_cast<int>(cols - k)) : load(x + k));
    memcpy(pairs + k / 2, rounded, sizeof rounded);
  }
  if (k / 2 < floats) memset(pairs + k / 2, 0, static_cast<size_t>(floats - k / 2) * sizeof(float));
}

int64_t float_scratch_floats(const MatmulArgs& args) {
  if (args.kernel == Kernel::stored) return args.cols * kPanelRows;
  const Rounding rounding = rounding_of(args);
  return rounding == Rounding::none ? 0 : chunk_rows(args, rounding) * rounded_floats(args, rounding);
}

void float_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch) {
  const int64_t even_cols = (args.cols + 1) & ~int64_t{1};
  switch (args.kernel) {
    case Kernel::f32:
      panel_product(args, kFloatTiles<F32Panels>, 64 * args.cols, panel_begin, panel_end, scratch);
      return;
    case Kernel::f16:
      panel_product(args, kFloatTiles<F16Panels>, 32 * even_cols, panel_begin, panel_end, scratch);
      return;
    case Kernel::bf16_exact:
      panel_product(args, kFloatTiles<BF16Panels<false>>, 32 * even_cols, panel_begin, panel_end, scratch);
      return;
    case Kernel::bf16: {
      const FloatTiles* tiles = &kFloatTiles<BF16Panels<true>>;
#ifdef PUNA_HAS_BF16_DOT
      if (args.has_bf16_dot) tiles = &kPairTiles;
#endif
      panel_product(args, *tiles, 32 * even_cols, panel_begin, panel_end, scratch);
      return;
    }
    default:
      break;
  }
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    dequantize_panel(args, panel, scratch);
    multiply_panels(args, kFloatTiles<F32Panels>, {args.x, args.ldx, args.cols},
                    reinterpret_cast<const uint8_t*>(scratch), 0, panel, 1, 0, args.m);
  }
}

}  // namespace puna::PUNA_NS
