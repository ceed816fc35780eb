// IQ4_NL and IQ4_XS: 4-bit codes that index a table of sixteen signed values.
//
// Stored, IQ4_NL, 18 bytes: float16 d, 16 bytes of nibbles as in Q4_0. Value d·table[q], 32 elements.
// Stored, IQ4_XS, 136 bytes, 256 elements: float16 d, a 16-bit word of upper scale bits, 4 bytes of lower ones, 128
//   bytes of nibbles, sixteen per sub-block of 32. Scale j = (nibble j%2 of byte j/2, with bits 2·j, 2·j+1 of the
//   word above it) - 32. Value (d·scale)·table[q].
//
// Packed, 16 rows:
//   IQ4_NL  two blocks, 576 bytes: as Q4_0 in q4.h
//   IQ4_XS  one super-block, 2240 bytes: d[16] float16, 32 bytes of padding, scale[8][16] signed bytes,
//           nibbles[8][4][16][4]
//
// Product, blocks of 32 ascending: S = sum of table[q]·a exactly (IQ4_XS: times the scale); acc = fma(float(S)·d, da,
// acc). As in q4_q5_k.h the scale may be multiplied on either side: all is exact up to the one rounding.
#pragma once

#include "format.h"
#include "q4.h"

namespace puna {

inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct IQ4_XSLayout {
  static constexpr int kElements = 256, kBytes = 136, kUnitElements = 256, kUnitBytes = 2240;
  static constexpr int kScales = 64, kCodes = 192;
};

}  // namespace puna

#ifndef PUNA_NS

namespace puna::quant {

struct IQ4_NL : Q4_0 {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(kIq4Values[block[2 + i] & 15]);
      out[i + 16] = d * static_cast<float>(kIq4Values[block[2 + i] >> 4]);
    }
  }
};

struct IQ4_XS : IQ4_XSLayout {
  static int scale(const uint8_t* block, int j) {
    const int low = (block[4 + j / 2] >> (4 * (j % 2))) & 15, high = (load_u16(block + 2) >> (2 * j)) & 3;
    return (low | (high << 4)) - 32;
  }
  // The same into bytes that are zero.
  static void set_scale(uint8_t* block, int j, int scale) {
    const int stored = scale + 32;
    block[2 + j / 4] = static_cast<uint8_t>(block[2 + j / 4] | ((stored >> 4) << (2 * (j % 4))));
    block[4 + j / 2] = static_cast<uint8_t>(block[4 + j / 2] | ((stored & 15) << (4 * (j % 2))));
  }
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int j = 0; j < 8; ++j) {
      const float step = d * static_cast<float>(scale(block, j));
      const uint8_t* codes = block + 8 + 16 * j;
      for (int i = 0; i < 16; ++i) {
        out[32 * j + i] = step * static_cast<float>(kIq4Values[codes[i] & 15]);
        out[32 * j + 16 + i] = step * static_cast<float>(kIq4Values[codes[i] >> 4]);
      }
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    store_u16(block, parts.d);
    memset(block + 2, 0, 6);
    for (int j = 0; j < 8; ++j) {
      set_scale(block, j, parts.scales[j]);
      store_nibbles(parts.codes + 32 * j, block + 8 + 16 * j);
    }
  }
  static void pack(const uint8_t* block, uint8_t* unit, int, int row) {
    memcpy(unit + 2 * row, block, 2);
    for (int j = 0; j < 8; ++j) {
      unit[kScales + 16 * j + row] = static_cast<uint8_t>(scale(block, j));
      pack_nibbles(block + 8 + 16 * j, unit + kCodes + 256 * j, row);
    }
  }
  static void unpack(const uint8_t* unit, int, int row, uint8_t* block) {
    memcpy(block, unit + 2 * row, 2);
    memset(block + 2, 0, 6);
    for (int j = 0; j < 8; ++j) {
      set_scale(block, j, static_cast<int8_t>(unit[kScales + 16 * j + row]));
      unpack_nibbles(unit + kCodes + 256 * j, row, block + 8 + 16 * j);
    }
  }
};

}  // namespace puna::quant

#else

namespace puna::PUNA_NS {

PUNA_INLINE bvec iq4_values(bvec index) { return blookup(reinterpret_cast<const uint8_t*>(kIq4Values), index); }

struct IQ4_NLWeights : Q4_0Layout, SignedCodes {
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return iq4_values(nibbles<I>(unit + kCodes + 256 * block, p));
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) { return halves(unit + 32 * block, p); }
};

struct IQ4_XSWeights : IQ4_XSLayout, SignedCodes {
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return iq4_values(nibbles<I>(unit + kCodes + 256 * block, p));
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) {
    return mul(halves(unit, p), signed_bytes(unit + kScales + 16 * block, p));
  }
};

}  // namespace puna::PUNA_NS
#endif
