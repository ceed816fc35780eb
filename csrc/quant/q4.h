// Q4_0 and Q4_1: 4-bit codes q in blocks of 32.
//
// Stored, Q4_0, 18 bytes: float16 d, 16 bytes. Byte i holds element i in its low and element i+16 in its high nibble.
//   Value d·(q-8).
// Stored, Q4_1, 20 bytes: float16 d, float16 m, the same 16 bytes. Value d·q + m.
//
// Packed, two blocks of 16 rows:
//   Q4_0  576 bytes: d[2][16] float16, codes[2][4][16][4]
//   Q4_1  640 bytes: d[2][16], m[2][16] float16, codes[2][4][16][4]
// codes[block][i][row] are the stored bytes 4·i..4·i+3: k = 4·i+j in the low, 16+4·i+j in the high nibbles. So a
// 64-byte vector has four consecutive k of sixteen rows, twice.
//
// Product, blocks ascending: S = sum of (q-8)·a exactly (Q4_1: of q·a); acc = fma(float(S)·d, da, acc); Q4_1 then
// acc = fma(m, da·float(sum a), acc). a, da: the int8 activations of a8.h.
#pragma once

#include "format.h"

namespace puna {

struct Q4_0Layout {
  static constexpr int kElements = 32, kBytes = 18, kUnitElements = 64, kUnitBytes = 576;
  static constexpr int kCodes = 64;
};
struct Q4_1Layout {
  static constexpr int kElements = 32, kBytes = 20, kUnitElements = 64, kUnitBytes = 640;
  static constexpr int kMins = 64, kCodes = 128;
};

}  // namespace puna

#ifndef PUNA_NS
#include "bits.h"

namespace puna::quant {

// The sixteen bytes of 4-bit codes of one row: four words of a vector each.
PUNA_INLINE void pack_nibbles(const uint8_t* codes, uint8_t* vectors, int row) {
  for (int i = 0; i < 4; ++i) memcpy(vectors + 64 * i + 4 * row, codes + 4 * i, 4);
}
PUNA_INLINE void unpack_nibbles(const uint8_t* vectors, int row, uint8_t* codes) {
  for (int i = 0; i < 4; ++i) memcpy(codes + 4 * i, vectors + 64 * i + 4 * row, 4);
}

struct Q4_0 : Q4_0Layout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
      out[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    store_u16(block, parts.d);
    store_nibbles(parts.codes, block + 2);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int sub, int row) {
    memcpy(unit + 32 * sub + 2 * row, block, 2);
    pack_nibbles(block + 2, unit + kCodes + 256 * sub, row);
  }
  static void unpack(const uint8_t* unit, int sub, int row, uint8_t* block) {
    memcpy(block, unit + 32 * sub + 2 * row, 2);
    unpack_nibbles(unit + kCodes + 256 * sub, row, block + 2);
  }
};

struct Q4_1 : Q4_1Layout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block), m = load_half(block + 2);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(block[4 + i] & 15) + m;
      out[i + 16] = d * static_cast<float>(block[4 + i] >> 4) + m;
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    store_u16(block, parts.d);
    store_u16(block + 2, parts.m);
    store_nibbles(parts.codes, block + 4);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int sub, int row) {
    memcpy(unit + 32 * sub + 2 * row, block, 2);
    memcpy(unit + kMins + 32 * sub + 2 * row, block + 2, 2);
    pack_nibbles(block + 4, unit + kCodes + 256 * sub, row);
  }
  static void unpack(const uint8_t* unit, int sub, int row, uint8_t* block) {
    memcpy(block, unit + 32 * sub + 2 * row, 2);
    memcpy(block + 2, unit + kMins + 32 * sub + 2 * row, 2);
    unpack_nibbles(unit + kCodes + 256 * sub, row, block + 4);
  }
};

}  // namespace puna::quant

#else
#include "codes.h"

namespace puna::PUNA_NS {

struct Q4_0Weights : Q4_0Layout, UnsignedCodes<15, 8> {
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return nibbles<I>(unit + kCodes + 256 * block, p);
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) { return halves(unit + 32 * block, p); }
};

struct Q4_1Weights : Q4_1Layout, UnsignedCodes<15, 0> {
  static constexpr bool kHasOffset = true;
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return nibbles<I>(unit + kCodes + 256 * block, p);
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) { return halves(unit + 32 * block, p); }
  PUNA_INLINE fvec offset(const uint8_t* unit, int block, int p) { return halves(unit + kMins + 32 * block, p); }
};

}  // namespace puna::PUNA_NS
#endif
