// Q5_0 and Q5_1: 5-bit codes q in blocks of 32.
//
// Stored, Q5_0, 22 bytes: float16 d, 4 bytes of upper bits, 16 bytes of nibbles. Nibbles as in Q4_0; bit e of the
//   little-endian word of upper bits is bit 4 of element e. Value d·(q-16).
// Stored, Q5_1, 24 bytes: float16 d, float16 m, then the same. Value d·q + m.
//
// Packed, two blocks of 16 rows:
//   Q5_0  704 bytes: d[2][16] float16, upper[2][16][4], nibbles[2][4][16][4]
//   Q5_1  768 bytes: d[2][16], m[2][16] float16, upper[2][16][4], nibbles[2][4][16][4]
// Nibbles as in q4.h. Bit I of byte j of a row's upper word belongs to k = 4·I+j, so that a shift of the whole vector
// puts the bits of code vector I in place.
//
// Product, blocks ascending: S = sum of (q-16)·a exactly (Q5_1: of q·a); acc = fma(float(S)·d, da, acc); Q5_1 then
// acc = fma(m, da·float(sum a), acc).
#pragma once

#include "format.h"
#include "q4.h"

namespace puna {

struct Q5_0Layout {
  static constexpr int kElements = 32, kBytes = 22, kUnitElements = 64, kUnitBytes = 704;
  static constexpr int kUpper = 64, kCodes = 192;
};
struct Q5_1Layout {
  static constexpr int kElements = 32, kBytes = 24, kUnitElements = 64, kUnitBytes = 768;
  static constexpr int kMins = 64, kUpper = 128, kCodes = 256;
};

}  // namespace puna

#ifndef PUNA_NS

namespace puna::quant {

PUNA_INLINE void pack_upper_bits(const uint8_t* upper, uint8_t* vector, int row) {
  const uint32_t bits = load_u32(upper);
  for (int j = 0; j < 4; ++j) vector[4 * row + j] = static_cast<uint8_t>(gather_fourths(bits >> j));
}
PUNA_INLINE void unpack_upper_bits(const uint8_t* vector, int row, uint8_t* upper) {
  uint32_t bits = 0;
  for (int j = 0; j < 4; ++j) bits |= spread_fourths(vector[4 * row + j]) << j;
  store_u32(upper, bits);
}

PUNA_INLINE void store_fifth_bits(const uint8_t* codes, uint8_t* upper) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>((codes[i] >> 4) & 1) << i;
  store_u32(upper, bits);
}

struct Q5_0 : Q5_0Layout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    const uint32_t upper = load_u32(block + 2);
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t low = (block[6 + i] & 15u) | (((upper >> i) & 1u) << 4);
      const uint32_t high = (block[6 + i] >> 4) | (((upper >> (i + 16)) & 1u) << 4);
      out[i] = d * static_cast<float>(static_cast<int>(low) - 16);
      out[i + 16] = d * static_cast<float>(static_cast<int>(high) - 16);
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    store_u16(block, parts.d);
    store_fifth_bits(parts.codes, block + 2);
    store_nibbles(parts.codes, block + 6);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int sub, int row) {
    memcpy(unit + 32 * sub + 2 * row, block, 2);
    pack_upper_bits(block + 2, unit + kUpper + 64 * sub, row);
    pack_nibbles(block + 6, unit + kCodes + 256 * sub, row);
  }
  static void unpack(const uint8_t* unit, int sub, int row, uint8_t* block) {
    memcpy(block, unit + 32 * sub + 2 * row, 2);
    unpack_upper_bits(unit + kUpper + 64 * sub, row, block + 2);
    unpack_nibbles(unit + kCodes + 256 * sub, row, block + 6);
  }
};

struct Q5_1 : Q5_1Layout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block), m = load_half(block + 2);
    const uint32_t upper = load_u32(block + 4);
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t low = (block[8 + i] & 15u) | (((upper >> i) & 1u) << 4);
      const uint32_t high = (block[8 + i] >> 4) | (((upper >> (i + 16)) & 1u) << 4);
      out[i] = d * static_cast<float>(low) + m;
      out[i + 16] = d * static_cast<float>(high) + m;
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    store_u16(block, parts.d);
    store_u16(block + 2, parts.m);
    store_fifth_bits(parts.codes, block + 4);
    store_nibbles(parts.codes, block + 8);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int sub, int row) {
    memcpy(unit + 32 * sub + 2 * row, block, 2);
    memcpy(unit + kMins + 32 * sub + 2 * row, block + 2, 2);
    pack_upper_bits(block + 4, unit + kUpper + 64 * sub, row);
    pack_nibbles(block + 8, unit + kCodes + 256 * sub, row);
  }
  static void unpack(const uint8_t* unit, int sub, int row, uint8_t* block) {
    memcpy(block, unit + 32 * sub + 2 * row, 2);
    memcpy(block + 2, unit + kMins + 32 * sub + 2 * row, 2);
    unpack_upper_bits(unit + kUpper + 64 * sub, row, block + 4);
    unpack_nibbles(unit + kCodes + 256 * sub, row, block + 8);
  }
};

}  // namespace puna::quant

#else

namespace puna::PUNA_NS {

struct Q5_0Weights : Q5_0Layout, UnsignedCodes<31, 16> {
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return bor(nibbles<I>(unit + kCodes + 256 * block, p), one_bit<I, 4>(unit + kUpper + 64 * block, p));
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) { return halves(unit + 32 * block, p); }
};

struct Q5_1Weights : Q5_1Layout, UnsignedCodes<31, 0> {
  static constexpr bool kHasOffset = true;
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return bor(nibbles<I>(unit + kCodes + 256 * block, p), one_bit<I, 4>(unit + kUpper + 64 * block, p));
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) { return halves(unit + 32 * block, p); }
  PUNA_INLINE fvec offset(const uint8_t* unit, int block, int p) { return halves(unit + kMins + 32 * block, p); }
};

}  // namespace puna::PUNA_NS
#endif
