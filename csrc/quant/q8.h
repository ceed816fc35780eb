// Q8_0 and Q8_K: signed 8-bit codes.
//
// Stored, Q8_0, 34 bytes: float16 d, 32 signed bytes. Value q·d.
// Stored, Q8_K, 292 bytes: float32 d, 256 signed bytes, 16 int16 sums of 16 codes each (not used). Value d·q. llama.cpp
//   keeps activations in it; files do not contain it. No packed form.
//
// Packed, Q8_0, two blocks of 16 rows, 1088 bytes: d[2][16] float16, codes[2][8][16][4]; codes[block][i][row] are the
// codes of k = 4·i .. 4·i+3.
//
// Product of Q8_0, blocks ascending: S = sum of q·a exactly; acc = fma(float(S)·d, da, acc).
#pragma once

#include "format.h"

namespace puna {

struct Q8_0Layout {
  static constexpr int kElements = 32, kBytes = 34, kUnitElements = 64, kUnitBytes = 1088;
  static constexpr int kCodes = 64;
};

}  // namespace puna

#ifndef PUNA_NS
#include "bits.h"

namespace puna::quant {

struct Q8_0 : Q8_0Layout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    store_u16(block, parts.d);
    memcpy(block + 2, parts.codes, 32);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int sub, int row) {
    memcpy(unit + 32 * sub + 2 * row, block, 2);
    uint8_t* vectors = unit + kCodes + 512 * sub;
    for (int i = 0; i < 8; ++i) memcpy(vectors + 64 * i + 4 * row, block + 2 + 4 * i, 4);
  }
  static void unpack(const uint8_t* unit, int sub, int row, uint8_t* block) {
    memcpy(block, unit + 32 * sub + 2 * row, 2);
    const uint8_t* vectors = unit + kCodes + 512 * sub;
    for (int i = 0; i < 8; ++i) memcpy(block + 2 + 4 * i, vectors + 64 * i + 4 * row, 4);
  }
};

struct Q8_K {
  static constexpr int kElements = 256, kBytes = 292;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_float(block);
    for (int i = 0; i < 256; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(block[4 + i]));
  }
};

}  // namespace puna::quant

#else
#include "codes.h"

namespace puna::PUNA_NS {

struct Q8_0Weights : Q8_0Layout, SignedCodes {
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return part_of(unit + kCodes + 512 * block + 64 * I, p);
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) { return halves(unit + 32 * block, p); }
};

}  // namespace puna::PUNA_NS
#endif
