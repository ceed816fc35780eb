// MXFP4 and NVFP4: 4-bit floats (e2m1) with a shared scale.
//
// The sixteen codes stand for 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. The table below holds twice that, so the
// scales are halved.
// Stored, MXFP4, 17 bytes: an 8-bit exponent e, 16 bytes of nibbles as in Q4_0. Value 2**(e-128)·table[q], 32 elements.
// Stored, NVFP4, 36 bytes: four scales in unsigned e4m3 (bias 7; 0x7F counts as 0), then per scale 8 bytes of nibbles:
//   the low ones are its first eight elements, the high ones the other eight. Value (scale/2)·table[q], 64 elements.
//   No packed form: products go through float32 panels.
//
// Packed, MXFP4, two blocks of 16 rows, 576 bytes: scale[16][2] bfloat16, which 2**(e-128) is exactly, of both blocks of
//   a row in one 32-bit lane; codes[2][4][16][4] as in q4.h.
//
// Product of MXFP4, blocks ascending: S = sum of table[q]·a exactly; acc = fma(float(S)·2**(e-128), da, acc). A scale that
// is subnormal (e < 2) counts as zero.
#pragma once

#include "format.h"
#include "q4.h"

namespace puna {

inline constexpr int8_t kFp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct MXFP4Layout {
  static constexpr int kElements = 32, kBytes = 17, kUnitElements = 64, kUnitBytes = 576;
  static constexpr int kCodes = 64;
};

}  // namespace puna

#ifndef PUNA_NS

namespace puna::quant {

struct MXFP4 : MXFP4Layout {
  // The upper half of the float32 2**(e-128).
  static uint16_t scale(uint8_t e) { return static_cast<uint16_t>(e < 2 ? 0x20 << e : (e - 1) << 7); }
  static void dequantize(const uint8_t* block, float* out) {
    const float d = bf16_to_float(scale(block[0]));
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(kFp4Values[block[1 + i] & 15]);
      out[i + 16] = d * static_cast<float>(kFp4Values[block[1 + i] >> 4]);
    }
  }
  static void pack(const uint8_t* block, uint8_t* unit, int sub, int row) {
    const uint16_t stored = scale(block[0]);
    memcpy(unit + 4 * row + 2 * sub, &stored, 2);
    pack_nibbles(block + 1, unit + kCodes + 256 * sub, row);
  }
  static void unpack(const uint8_t* unit, int sub, int row, uint8_t* block) {
    const int stored = load_u16(unit + 4 * row + 2 * sub);
    block[0] = static_cast<uint8_t>(stored < 0x80 ? stored >> 6 : (stored >> 7) + 1);
    unpack_nibbles(unit + kCodes + 256 * sub, row, block + 1);
  }
};

struct NVFP4 {
  static constexpr int kElements = 64, kBytes = 36;
  static float scale(uint8_t x) {
    if (x == 0x7f) return 0.0f;
    const uint32_t exponent = (x >> 3) & 15u, mantissa = x & 7u;
    if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-10f;
    return float_of(((exponent + 119) << 23) | (mantissa << 20));
  }
  static void dequantize(const uint8_t* block, float* out) {
    for (int group = 0; group < 4; ++group) {
      const float d = scale(block[group]);
      const uint8_t* codes = block + 4 + 8 * group;
      for (int i = 0; i < 8; ++i) {
        out[16 * group + i] = d * static_cast<float>(kFp4Values[codes[i] & 15]);
        out[16 * group + 8 + i] = d * static_cast<float>(kFp4Values[codes[i] >> 4]);
      }
    }
  }
};

}  // namespace puna::quant

#else

namespace puna::PUNA_NS {

// The values plus 16: such sums need one zero point less of everything than signed ones.
alignas(16) inline constexpr uint8_t kFp4Codes[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

struct MXFP4Weights : MXFP4Layout, UnsignedCodes<28, 16> {
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return blookup(kFp4Codes, nibbles<I>(unit + kCodes + 256 * block, p));
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) {
    const bvec both = part_of(unit, p);
    return block == 0 ? even_bf16(both) : odd_bf16(both);
  }
};

}  // namespace puna::PUNA_NS
#endif
