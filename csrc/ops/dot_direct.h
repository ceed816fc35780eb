// The integer tile for instruction sets that add four int8 products straight into int32 lanes (vpdpbusd, sdot), and for
// portable C++.
#pragma once

#include "../quant/a8.h"
#include "../quant/codes.h"

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

// acc[T][16] = one panel times T rows of a8 blocks.
template <class W, int T>
[[gnu::noinline]] void integer_tile(const uint8_t* panel, int64_t units, const uint8_t* const* rows, float* out) {
  constexpr int kBlocks = W::kUnitElements / kA8BlockElements, kBlockBytes = W::kUnitBytes / kBlocks;
  fvec acc[T][kParts];
  for (int t = 0; t < T; ++t) {
    for (int p = 0; p < kParts; ++p) acc[t][p] = nset1(0.0f);
  }
  const uint8_t* row[T];
  for (int t = 0; t < T; ++t) row[t] = rows[t];
  int64_t offset = 0;
  for (const uint8_t *unit = panel, *end = panel + units * W::kUnitBytes; unit != end; unit += W::kUnitBytes) {
    for (int block = 0; block < kBlocks; ++block, offset += kA8BlockBytes) {
      prefetch_block<kBlockBytes, T>(unit + kBlockBytes * block);
#pragma GCC unroll kUnroll
      for (int p = 0; p < kParts; ++p) {
        bvec w[8];
        load_operands<W>(unit, block, p, w);
        const fvec scale = W::scale(unit, block, p);
#pragma GCC unroll kUnroll
        for (int t = 0; t < T; ++t) {
          const uint8_t* x = row[t] + offset;
          fvec f;
          if constexpr (W::kSubScales) {
            ivec low = start_half<W::kZero>(x + kA8MinusPairs), high = start_half<W::kZero>(x + kA8MinusPairs + 4);
#pragma GCC unroll kUnroll
            for (int i = 0; i < 4; ++i) {
              low = dot4(low, w[i], x + 4 * i);
              high = dot4(high, w[i + 4], x + 16 + 4 * i);
            }
            // Exact: all three are integers below 2**24.
            f = mul(cvt_f32(high), nload_i8(W::sub_scale(unit, block, 1, p)));
            f = fma(cvt_f32(low), nload_i8(W::sub_scale(unit, block, 0, p)), f);
          } else {
            ivec sum = start<W::kZero, W::kSigned>(x + kA8Minus8);
#pragma GCC unroll kUnroll
            for (int i = 0; i < 8; ++i) sum = dot4(sum, w[i], x + 4 * i);
            f = cvt_f32(sum);
          }
          float d, dsum;
          memcpy(&d, x + kA8Scale, sizeof d);
          memcpy(&dsum, x + kA8ScaledSum, sizeof dsum);
          acc[t][p] = fma(mul(f, scale), nset1(d), acc[t][p]);
          if constexpr (W::kHasOffset) acc[t][p] = fma(W::offset(unit, block, p), nset1(dsum), acc[t][p]);
        }
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int p = 0; p < kParts; ++p) nstore(out + kPanelRows * t + kNativeRows * p, acc[t][p]);
  }
}

}  // namespace puna::PUNA_NS
