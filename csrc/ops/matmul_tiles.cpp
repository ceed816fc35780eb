// Products through AMX tiles: the integer formats with many rows, and BF16 weights with any number of rows.
//
// Integer formats give the bits of the other kernels: a block of 32 k is one product of tiles (two where the format has a
// scale per 16 k), whose exact sums then go through the same float32 chain. Half of the tile's depth is not used: a sum
// must end with its scale.
// BF16 has a rule of its own: K padded with zeros to a multiple of 32, and per 32 k acc += even + odd, two chains of
// fma from 0 over ascending k (simd/tiles.h), of activations rounded to bfloat16.
#include "matmul.h"

#ifdef PUNA_HAS_TILES

#include "../quant/a8.h"
#include "../quant/fp4.h"
#include "../quant/iq4.h"
#include "../quant/q2_q3_k.h"
#include "../quant/q4.h"
#include "../quant/q4_q5_k.h"
#include "../quant/q5.h"
#include "../quant/q6_k.h"
#include "../quant/q8.h"

namespace puna::PUNA_NS {
namespace {

// Bytes of x that stay in the second-level cache, which is larger on these machines, while panels pass by.
constexpr int64_t kChunkBytes = 524288;

// Tiles 0-3 are sums, 4 and 5 rows of x, 6 and 7 panels of weights.
TileShapes shapes_for(int rows, int row_bytes) {
  TileShapes shapes;
  for (int n = 0; n < 4; ++n) shapes.set(n, rows, kTileRowBytes);
  for (int n = 4; n < 6; ++n) shapes.set(n, rows, row_bytes);
  for (int n = 6; n < 8; ++n) shapes.set(n, row_bytes / 4, kTileRowBytes);
  return shapes;
}

// ---- integer formats ------------------------------------------------------------------------------------------------

constexpr int64_t kFewestRows = 20;  // from here on, tiles; with fewer, a product of vectors takes no longer
constexpr int64_t kFewestRest = 9;   // the same for what is left over after whole tiles
constexpr int kCodeBytes = kA8BlockElements * kPanelRows;
constexpr int kTogether = 2;  // blocks whose products are made before their sums are used; rows of a8 have whole pairs

// Products of tiles for one block: codes, or the upper and lower digits of codes times their scale.
template <class W>
constexpr int kDigits = W::kSubScales ? 2 : 1;

// Signed codes of k = 4·I …: the zero point taken out.
template <class W, int I>
PUNA_INLINE bvec signed_codes(const uint8_t* unit, int block) {
  const bvec codes = W::template codes<I>(unit, block, 0);
  if constexpr (W::kZero == 0) return codes;
  else return {_mm512_sub_epi8(codes.v, bset1(W::kZero).v)};
}

// scale · code = 128 · upper + lower, for codes of up to 6 bits and scales of 8.
PUNA_INLINE void split_digits(bvec codes, const int8_t* scales, uint8_t* upper, uint8_t* lower) {
  const __m512i scale = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  const __m512i low_byte = _mm512_set1_epi16(0xff);
  const __m512i both = _mm512_or_si512(_mm512_and_si512(scale, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(scale, 16));
  __m512i high[2], low[2];
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i code = _mm512_srai_epi16(odd != 0 ? codes.v : _mm512_slli_epi16(codes.v, 8), 8);
    const __m512i product = _mm512_mullo_epi16(code, both);
    high[odd] = _mm512_srai_epi16(_mm512_add_epi16(product, _mm512_set1_epi16(64)), 7);
    low[odd] = _mm512_sub_epi16(product, _mm512_slli_epi16(high[odd], 7));
  }
  const auto joined = [&](const __m512i (&x)[2]) {
    return _mm512_or_si512(_mm512_and_si512(x[0], low_byte), _mm512_slli_epi16(x[1], 8));
  };
  _mm512_storeu_si512(upper, joined(high));
  _mm512_storeu_si512(lower, joined(low));
}

template <class W, int I>
PUNA_INLINE void unpack_vectors(const uint8_t* unit, int block, uint8_t* tiles) {
  const bvec codes = signed_codes<W, I>(unit, block);
  if constexpr (W::kSubScales) {
    split_digits(codes, W::sub_scale(unit, block, I / 4, 0), tiles + 64 * I, tiles + kCodeBytes + 64 * I);
  } else {
    _mm512_storeu_si512(tiles + 64 * I, codes.v);
  }
  if constexpr (I < 7) unpack_vectors<W, I + 1>(unit, block, tiles);
}

// A panel as tiles: [block][digit][k / 4][16][4] bytes.
template <class W>
[[gnu::noinline]] void unpack_panel(const uint8_t* panel, int64_t units, uint8_t* tiles) {
  for (int64_t u = 0; u < units; ++u, panel += W::kUnitBytes) {
    for (int block = 0; block < W::kUnitElements / kA8BlockElements; ++block, tiles += kDigits<W> * kCodeBytes) {
      unpack_vectors<W, 0>(panel, block, tiles);
    }
  }
}

using Sums = int32_t[kPanelRows][kPanelRows];

// The products of one block: tiles 2 · Place …, x in tile 4 + Place.
template <class W, int Place>
PUNA_INLINE void multiply_block(const uint8_t* tiles, const uint8_t* x, int64_t row_bytes, Sums* sums) {
  Tiles::load<4 + Place>(x, row_bytes);
  Tiles::load<6>(tiles, 64);
  Tiles::zero<2 * Place>();
  Tiles::dot_i8<2 * Place, 4 + Place, 6>();
  if constexpr (W::kSubScales) {
    Tiles::load<7>(tiles + kCodeBytes, 64);
    Tiles::zero<2 * Place + 1>();
    Tiles::dot_i8<2 * Place + 1, 4 + Place, 7>();
  }
  Tiles::store<2 * Place>(sums[0], 64);
  if constexpr (W::kSubScales) Tiles::store<2 * Place + 1>(sums[1], 64);
}

// Sixteen rows times one panel. Products run ahead of the sums they become, since storing a tile and reading it back
// takes long.
template <class W>
[[gnu::noinline]] void multiply_rows(const uint8_t* panel, int64_t units, const uint8_t* tiles, const uint8_t* x,
                                     int64_t row_bytes, float* out) {
  constexpr int kBlocks = W::kUnitElements / kA8BlockElements, kBytes = kDigits<W> * kCodeBytes;
  static_assert(kBlocks % kTogether == 0);
  alignas(64) Sums sums[2][kTogether][kDigits<W>];
  const auto multiply = [&](int64_t block) {
    Sums(*place)[kDigits<W>] = sums[block / kTogether % 2];
    multiply_block<W, 0>(tiles + kBytes * block, x + kA8BlockBytes * block, row_bytes, place[0]);
    multiply_block<W, 1>(tiles + kBytes * (block + 1), x + kA8BlockBytes * (block + 1), row_bytes, place[1]);
  };
  f32x16 acc[kPanelRows];
#pragma GCC unroll 16
  for (int t = 0; t < kPanelRows; ++t) acc[t] = zero();
  const int64_t blocks = units * kBlocks;
  multiply(0);
  for (int64_t first = 0; first < blocks; first += kTogether) {
    if (first + kTogether < blocks) multiply(first + kTogether);
    const uint8_t* unit = panel + first / kBlocks * W::kUnitBytes;
    for (int i = 0; i < kTogether; ++i) {
      const int block = static_cast<int>(first % kBlocks) + i;
      const Sums* sum = sums[first / kTogether % 2][i];
      const f32x16 scale = W::scale(unit, block, 0);
      f32x16 offset = {};
      if constexpr (W::kHasOffset) offset = W::offset(unit, block, 0);
      f32x16 mins[2] = {}, min_scale = {};
      if constexpr (W::kSubMins) {
        min_scale = eighth(W::min_scale(unit, 0));
        for (int j = 0; j < 2; ++j) mins[j] = nload_i8(W::sub_min(unit, block, j, 0));
      }
      const uint8_t* row = x + kA8BlockBytes * (first + i);
#pragma GCC unroll 16
      for (int t = 0; t < kPanelRows; ++t, row += row_bytes) {
        i32x16 exact = load_i32(sum[0][t]);
        if constexpr (W::kSubScales) exact = add_i32(shl_i32<7>(exact), load_i32(sum[1][t]));
        float d, dsum;
        memcpy(&d, row + kA8Scale, sizeof d);
        memcpy(&dsum, row + kA8ScaledSum, sizeof dsum);
        acc[t] = fma(mul(cvt_f32(exact), scale), set1(d), acc[t]);
        if constexpr (W::kHasOffset) acc[t] = fma(offset, set1(dsum), acc[t]);
        if constexpr (W::kSubMins) {
          int32_t minus8[2];
          memcpy(minus8, row + kA8Minus8, sizeof minus8);
          const f32x16 first = set1(static_cast<float>(minus8[0])), second = set1(static_cast<float>(minus8[1]));
          acc[t] = fma(mul(fma(mins[0], first, mul(mins[1], second)), min_scale), set1(d), acc[t]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kPanelRows; ++t) store(out + kPanelRows * t, acc[t]);
}

struct TiledFormat {
  int64_t unit_elements, unit_bytes, tile_bytes;  // of a unit
  void (*unpack)(const uint8_t* panel, int64_t units, uint8_t* tiles);
  void (*multiply)(const uint8_t* panel, int64_t units, const uint8_t* tiles, const uint8_t* x, int64_t row_bytes,
                   float* out);
};
template <class W>
constexpr TiledFormat kTiled = {W::kUnitElements, W::kUnitBytes,
                                W::kUnitElements / kA8BlockElements * kDigits<W> * kCodeBytes, unpack_panel<W>,
                                multiply_rows<W>};

TiledFormat tiled_format(Kernel kernel) {
  switch (kernel) {
    case Kernel::q4_0: return kTiled<Q4_0Weights>;
    case Kernel::q4_1: return kTiled<Q4_1Weights>;
    case Kernel::q5_0: return kTiled<Q5_0Weights>;
    case Kernel::q5_1: return kTiled<Q5_1Weights>;
    case Kernel::q8_0: return kTiled<Q8_0Weights>;
    case Kernel::iq4_nl: return kTiled<IQ4_NLWeights>;
    case Kernel::q4_k: return kTiled<Q4_KWeights>;
    case Kernel::q5_k: return kTiled<Q5_KWeights>;
    case Kernel::q6_k: return kTiled<Q6_KWeights>;
    case Kernel::iq4_xs: return kTiled<IQ4_XSWeights>;
    case Kernel::q2_k: return kTiled<Q2_KWeights>;
    case Kernel::q3_k: return kTiled<Q3_KWeights>;
    case Kernel::mxfp4: return kTiled<MXFP4Weights>;
    default: __builtin_unreachable();
  }
}

int64_t units_of(const MatmulArgs& args, const TiledFormat& format) {
  return (args.cols + format.unit_elements - 1) / format.unit_elements;
}

// Rows of a8 that go through tiles, from the first one on; the last tile may reach into the padding.
int64_t tiled_rows(const MatmulArgs& args) {
  const int64_t m = args.m * (args.two_terms ? 2 : 1), rest = m % kPanelRows;
  return rest >= kFewestRest ? m : m - rest;
}

// ---- BF16 -----------------------------------------------------------------------------------------------------------

constexpr int kStep = 32;              // k of a product of tiles
constexpr int kStepBytes = kStep * 2 * kPanelRows;  // of a panel

// Floats from one rounded row to the next: an odd number of cache lines.
int64_t pair_floats(int64_t cols) { return ((cols + kStep - 1) / kStep | 1) * (kStep / 2); }

int64_t bf16_chunk_rows(const MatmulArgs& args) {
  const int64_t rows = kChunkBytes / (pair_floats(args.cols) * int64_t{sizeof(float)}) & ~int64_t{31};
  const int64_t most = rows < 32 ? 32 : rows, padded = (args.m + kTileRows - 1) / kTileRows * kTileRows;
  return padded < most ? padded : most;
}

// One step of panel I and those behind it, times R tiles of rows.
template <int I, int P, int R>
PUNA_INLINE void multiply_panels(const uint8_t* const* weights) {
  constexpr int kWeights = 6 + I % 2;
  Tiles::load<kWeights>(weights[I], 64);
  Tiles::dot_bf16<R * I, 4, kWeights>();
  if constexpr (R > 1) Tiles::dot_bf16<R * I + 1, 5, kWeights>();
  if constexpr (I + 1 < P) multiply_panels<I + 1, P, R>(weights);
}

// out[P][16 R][16] = P neighbouring panels times R tiles of rows.
template <int P, int R>
[[gnu::noinline]] void bf16_tile(const uint8_t* panel, int64_t panel_bytes, const float* x, int64_t ldx, float* out) {
  Tiles::zero<0>();
  if constexpr (P * R > 1) Tiles::zero<1>();
  if constexpr (P * R > 2) Tiles::zero<2>();
  if constexpr (P * R > 3) Tiles::zero<3>();
  const int64_t stride = ldx * int64_t{sizeof(float)}, rest = panel_bytes % kStepBytes;
  alignas(64) uint8_t last[P][kStepBytes];
  const uint8_t* weights[P];
  for (int64_t offset = 0; offset < panel_bytes; offset += kStepBytes, x += kStep / 2) {
    for (int i = 0; i < P; ++i) weights[i] = panel + panel_bytes * i + offset;
    if (panel_bytes - offset == rest) {
      for (int i = 0; i < P; ++i) {
        memcpy(last[i], weights[i], static_cast<size_t>(rest));
        memset(last[i] + rest, 0, static_cast<size_t>(kStepBytes - rest));
        weights[i] = last[i];
      }
    }
    if constexpr (R == 1) {  // with few rows the weights come from memory
      for (int i = 0; i < P; ++i) {
        for (int line = 0; line < kStepBytes; line += 64) __builtin_prefetch(weights[i] + kPrefetchBytes + line);
      }
    }
    Tiles::load<4>(x, stride);
    if constexpr (R > 1) Tiles::load<5>(x + kTileRows * ldx, stride);
    multiply_panels<0, P, R>(weights);
  }
  constexpr int kSums = kTileRows * kPanelRows;
  Tiles::store<0>(out, 64);
  if constexpr (P * R > 1) Tiles::store<1>(out + kSums, 64);
  if constexpr (P * R > 2) Tiles::store<2>(out + 2 * kSums, 64);
  if constexpr (P * R > 3) Tiles::store<3>(out + 3 * kSums, 64);
}

// `panels` (1, 2 or 4) times R tiles of rows.
template <int R>
void bf16_tiles(int64_t panels, const uint8_t* panel, int64_t panel_bytes, const float* x, int64_t ldx, float* out) {
  if constexpr (R == 1) {
    if (panels == 4) return bf16_tile<4, 1>(panel, panel_bytes, x, ldx, out);
  }
  if (panels == 2) return bf16_tile<2, R>(panel, panel_bytes, x, ldx, out);
  bf16_tile<1, R>(panel, panel_bytes, x, ldx, out);
}

}  // namespace

bool takes_tiles(const MatmulArgs& args) { return args.m * (args.two_terms ? 2 : 1) >= kFewestRows; }

int64_t tiled_scratch_floats(const MatmulArgs& args) {
  if (args.kernel == Kernel::bf16) return bf16_chunk_rows(args) * pair_floats(args.cols);
  const TiledFormat format = tiled_format(args.kernel);
  return units_of(args, format) * format.tile_bytes / int64_t{sizeof(float)};
}

void tiled_integer_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch) {
  const TiledFormat format = tiled_format(args.kernel);
  const int64_t units = units_of(args, format), panel_bytes = units * format.unit_bytes;
  const int64_t row_bytes = a8_row_bytes(args.cols), terms = args.two_terms ? 2 : 1, tiled = tiled_rows(args);
  const int64_t fitting = kChunkBytes / row_bytes / kPanelRows * kPanelRows;
  const int64_t chunk_rows = fitting < kPanelRows ? int64_t{kPanelRows} : fitting;
  uint8_t* const tiles = reinterpret_cast<uint8_t*>(scratch);
  alignas(64) float acc[kPanelRows * kPanelRows];
  Tiles::configure(shapes_for(kTileRows, kA8BlockElements));
  for (int64_t chunk = 0; chunk < tiled; chunk += chunk_rows) {
    const int64_t end = tiled - chunk < chunk_rows ? tiled : chunk + chunk_rows;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const uint8_t* weights = args.packed + panel * panel_bytes;
      format.unpack(weights, units, tiles);
      for (int64_t first = chunk; first < end; first += kPanelRows) {
        const int64_t rows = end - first < kPanelRows ? end - first : int64_t{kPanelRows};
        format.multiply(weights, units, tiles, args.a8 + first * row_bytes, row_bytes, acc);
        if (args.two_terms) add_pairs(acc, rows / 2);
        finish_tile(args, panel, first / terms, rows / terms, acc);
      }
    }
  }
  Tiles::release();
  if (tiled == args.m * terms) return;
  MatmulArgs rest = args;
  rest.m -= tiled / terms;
  rest.a8 += tiled * row_bytes;
  rest.out += tiled / terms * args.ldo;
  if (args.residual != nullptr) rest.residual += tiled / terms * args.ldr;
  integer_product(rest, panel_begin, panel_end);
}

void tiled_bf16_product(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch) {
  const int64_t ld = pair_floats(args.cols), panel_bytes = (args.cols + 1) / 2 * 64, step = bf16_chunk_rows(args);
  const int64_t together = args.m <= kTileRows ? 4 : 2;
  alignas(64) float acc[4 * kTileRows * kPanelRows];
  // Fewer rows take less time; whole tiles take rows of zeros in the end.
  const int64_t tile_rows = args.m < kTileRows ? args.m : int64_t{kTileRows};
  Tiles::configure(shapes_for(static_cast<int>(tile_rows), kTileRowBytes));
  for (int64_t chunk = 0; chunk < args.m; chunk += step) {
    const int64_t rows = args.m - chunk < step ? args.m - chunk : step;
    const int64_t padded = (rows + tile_rows - 1) / tile_rows * tile_rows;
    for (int64_t row = 0; row < rows; ++row) {
      round_to_pairs(args.x + (chunk + row) * args.ldx, args.cols, scratch + row * ld, ld);
    }
    memset(scratch + rows * ld, 0, static_cast<size_t>((padded - rows) * ld) * sizeof(float));
    for (int64_t panel = panel_begin, panels; panel < panel_end; panel += panels) {
      panels = panel_end - panel >= together ? together : 1;
      const uint8_t* weights = args.packed + panel * panel_bytes;
      for (int64_t first = 0, count; first < rows; first += count) {
        count = padded - first > kTileRows ? 2 * kTileRows : kTileRows;
        (count > kTileRows ? bf16_tiles<2> : bf16_tiles<1>)(panels, weights, panel_bytes, scratch + first * ld, ld, acc);
        const int64_t kept = rows - first < count ? rows - first : count;
        for (int64_t i = 0; i < panels; ++i) {
          finish_tile(args, panel + i, chunk + first, kept, acc + count * kPanelRows * i);
        }
      }
    }
  }
  Tiles::release();
}

}  // namespace puna::PUNA_NS

#endif
