// The integer tile for instruction sets that add four int8 products straight into int32 lanes (vpdpbusd, sdot), and for
// portable C++.
#pragma once

#include "../quant/a8.h"
#include "../quant/codes.h"
#include "matmul.h"

namespace puna::PUNA_NS {

template <class W>
PUNA_INLINE void load_operands(const uint8_t* unit, int block, int p, bvec* w) {
  w[0] = operand<W::kZero, W::kSigned>(W::template codes<0>(unit, block, p));
  w[1] = operand<W::kZero, W::kSigned>(W::template codes<1>(unit, block, p));
  w[2] = operand<W::kZero, W::kSigned>(W::template codes<2>(unit, block, p));
  w[3] = operand<W::kZero, W::kSigned>(W::template codes<3>(unit, block, p));
  w[4] = operand<W::kZero, W::kSigned>(W::template codes<4>(unit, block, p));
  w[5] = operand<W::kZero, W::kSigned>(W::template codes<5>(unit, block, p));
  w[6] = operand<W::kZero, W::kSigned>(W::template codes<6>(unit, block, p));
  w[7] = operand<W::kZero, W::kSigned>(W::template codes<7>(unit, block, p));
}

// One block of 32 k of a native vector of rows of weights, ready to be multiplied.
template <class W>
struct BlockOperands {
  bvec w[8];
  fvec scale, offset, sub[2], min_scale, mins[2];
};

template <class W>
PUNA_INLINE void load_block(const uint8_t* unit, int block, int p, BlockOperands<W>& to) {
  load_operands<W>(unit, block, p, to.w);
  to.scale = W::scale(unit, block, p);
  if constexpr (W::kHasOffset) to.offset = W::offset(unit, block, p);
  if constexpr (W::kSubScales) {
    to.sub[0] = nload_i8(W::sub_scale(unit, block, 0, p));
    to.sub[1] = nload_i8(W::sub_scale(unit, block, 1, p));
  }
  if constexpr (W::kSubMins) {
    to.min_scale = eighth(W::min_scale(unit, p));
    to.mins[0] = nload_i8(W::sub_min(unit, block, 0, p));
    to.mins[1] = nload_i8(W::sub_min(unit, block, 1, p));
  }
}

// acc[v] += the block of N vectors of weights times one block of activations. Each word of these is read once for all
// N, and the two halves of the block are separate chains.
template <class W, int N>
PUNA_INLINE void multiply_block(const BlockOperands<W>* weights, const uint8_t* x, fvec* acc) {
  ivec low[N], high[N];
#pragma GCC unroll kUnroll
  for (int v = 0; v < N; ++v) {
    low[v] = start<W::kZero, W::kSigned>(x + kA8Minus8);
    high[v] = start<W::kZero, W::kSigned>(x + kA8Minus8 + 4);
  }
#pragma GCC unroll kUnroll
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < N; ++v) {
      low[v] = dot4(low[v], weights[v].w[i], x + 4 * i);
      high[v] = dot4(high[v], weights[v].w[i + 4], x + 16 + 4 * i);
    }
  }
  float d, dsum;
  memcpy(&d, x + kA8Scale, sizeof d);
  memcpy(&dsum, x + kA8ScaledSum, sizeof dsum);
  int32_t minus8[2];
  memcpy(minus8, x + kA8Minus8, sizeof minus8);
#pragma GCC unroll kUnroll
  for (int v = 0; v < N; ++v) {
    fvec f;
    // Exact: all three are integers below 2**24.
    if constexpr (W::kSubScales) f = fma(cvt_f32(low[v]), weights[v].sub[0], mul(cvt_f32(high[v]), weights[v].sub[1]));
    else f = cvt_f32(nadd(low[v], high[v]));
    acc[v] = fma(mul(f, weights[v].scale), nset1(d), acc[v]);
    if constexpr (W::kHasOffset) acc[v] = fma(weights[v].offset, nset1(dsum), acc[v]);
    if constexpr (W::kSubMins) {
      const fvec first = nset1(static_cast<float>(minus8[0])), second = nset1(static_cast<float>(minus8[1]));
      const fvec mins = fma(weights[v].mins[0], first, mul(weights[v].mins[1], second));  // exact, -8·M
      acc[v] = fma(mul(mins, weights[v].min_scale), nset1(d), acc[v]);
    }
  }
}

// One panel times T rows, sums in registers.
template <class W, int T>
[[gnu::noinline]] void few_rows(const IntegerOperands& operands, float* out) {
  constexpr int kBlocks = W::kUnitElements / kA8BlockElements, kBlockBytes = W::kUnitBytes / kBlocks;
  const int64_t row_bytes = operands.row_bytes;
  const uint8_t* x = operands.x;
  fvec acc[T][kParts];
  for (int t = 0; t < T; ++t) {
    for (int p = 0; p < kParts; ++p) acc[t][p] = nset1(0.0f);
  }
  const uint8_t* const end = operands.panel + operands.units * W::kUnitBytes;
  for (const uint8_t* unit = operands.panel; unit != end; unit += W::kUnitBytes) {
    for (int block = 0; block < kBlocks; ++block, x += kA8BlockBytes) {
      if constexpr (T >= kPrefetchRows) prefetch_block<kBlockBytes>(unit + kBlockBytes * block);
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) {
        BlockOperands<W> weights;
        load_block(unit, block, p, weights);
#pragma GCC unroll kUnroll
        for (int t = 0; t < T; ++t) multiply_block<W, 1>(&weights, x + t * row_bytes, &acc[t][p]);
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int p = 0; p < kParts; ++p) nstore(out + kPanelRows * t + kNativeRows * p, acc[t][p]);
  }
}

// P panels times any number of rows. The weights of a block stay in registers for all rows, the sums in the nearest
// cache: a word of activations is read once for two vectors of weights, and unpacking costs next to nothing.
template <class W, int P>
[[gnu::noinline]] void many_rows(const IntegerOperands& operands, float* out) {
  constexpr int kBlocks = W::kUnitElements / kA8BlockElements, kBlockBytes = W::kUnitBytes / kBlocks;
  constexpr int kVectors = P * kParts, kTogether = kVectors > 1 ? 2 : 1;
  const int64_t rows = operands.rows, row_bytes = operands.row_bytes, panel_bytes = operands.panel_bytes;
  memset(out, 0, static_cast<size_t>(P * rows * kPanelRows) * sizeof(float));
  const uint8_t* x = operands.x;
  const uint8_t *const begin = operands.panel, *const end = begin + operands.units * W::kUnitBytes;
  for (const uint8_t* unit = begin; unit != end; unit += W::kUnitBytes) {
    for (int block = 0; block < kBlocks; ++block, x += kA8BlockBytes) {
      // Behind its panel, a stream of weights goes on P panels further.
      const uint8_t* stream = unit + kBlockBytes * block;
      if (stream + kPrefetchBytes >= end) stream += (P - 1) * panel_bytes;
#pragma GCC unroll kUnroll
      for (int p = 0; p < P; ++p) prefetch_block<kBlockBytes>(stream + p * panel_bytes);
      for (int first = 0; first < kVectors; first += kTogether) {
        BlockOperands<W> weights[kTogether];
        float* sums[kTogether];
#pragma GCC unroll kUnroll
        for (int v = 0; v < kTogether; ++v) {
          const int p = (first + v) / kParts, part = (first + v) % kParts;
          load_block(unit + p * panel_bytes, block, part, weights[v]);
          sums[v] = out + p * rows * kPanelRows + part * kNativeRows;
        }
        const uint8_t* row = x;
        for (int64_t t = 0; t < rows; ++t, row += row_bytes) {
          fvec acc[kTogether];
#pragma GCC unroll kUnroll
          for (int v = 0; v < kTogether; ++v) acc[v] = nload(sums[v] + kPanelRows * t);
          multiply_block<W, kTogether>(weights, row, acc);
#pragma GCC unroll kUnroll
          for (int v = 0; v < kTogether; ++v) nstore(sums[v] + kPanelRows * t, acc[v]);
        }
      }
    }
  }
}

// With few rows, two streams of weights are worse than one.
inline constexpr int64_t kFewRows = 4;
PUNA_INLINE int64_t panels_together(int64_t rows) { return rows > kFewRows && kPanelPairs ? kMaxPanels : 1; }

template <class W>
void multiply(const IntegerOperands& operands, int64_t panels, float* out) {
  if constexpr (kPanelPairs) {
    if (panels == 2) return many_rows<W, 2>(operands, out);
  }
  switch (operands.rows) {
    case 1: return few_rows<W, 1>(operands, out);
    case 2: return few_rows<W, 2>(operands, out);
    case 3: return few_rows<W, 3>(operands, out);
    case 4: return few_rows<W, 4>(operands, out);
    default: return many_rows<W, 1>(operands, out);
  }
}

}  // namespace puna::PUNA_NS
