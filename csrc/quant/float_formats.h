// F32, F16, BF16: unquantized weights.
//
// Stored: little-endian values, one after another.
//
// Packed, panels of 16 rows:
//   F32   [k][16] float32                     64 bytes per k
//   F16   [k/2][2][16] float16                64 bytes per two k
//   BF16  [k/2][16][2] bfloat16               64 bytes per two k: a 32-bit lane is the two k of a row, low half even,
//                                             so that a shift or a mask makes float32 of it (and a row of an AMX tile)
// An odd number of columns is padded with a zero.
//
// Product: acc = fma(w, x, acc) in float32, k ascending, from 0. The weights convert to float32 exactly.
// BF16, unless full precision is asked for: x is rounded to bfloat16 (nearest, ties to even), and of each two k the odd
// one comes first: 1, 0, 3, 2 …, the padded one included. That is the order of vdpbf16ps, so that processors which
// multiply pairs of bfloat16 twice as fast give the same bits. Every variant does so but amx, whose tiles add in an
// order of their own (simd/tiles.h).
#pragma once

#include "format.h"

#ifndef PUNA_NS
#include "bits.h"

namespace puna::quant {

struct F32 {
  static constexpr int kElements = 1, kBytes = 4, kUnitElements = 1, kUnitBytes = 64;
  static void dequantize(const uint8_t* block, float* out) { *out = load_float(block); }
  static void pack(const uint8_t* block, uint8_t* unit, int, int row) { memcpy(unit + 4 * row, block, 4); }
  static void unpack(const uint8_t* unit, int, int row, uint8_t* block) { memcpy(block, unit + 4 * row, 4); }
};

struct F16 {
  static constexpr int kElements = 1, kBytes = 2, kUnitElements = 2, kUnitBytes = 64;
  static void dequantize(const uint8_t* block, float* out) { *out = load_half(block); }
  static void pack(const uint8_t* block, uint8_t* unit, int k, int row) { memcpy(unit + 32 * k + 2 * row, block, 2); }
  static void unpack(const uint8_t* unit, int k, int row, uint8_t* block) { memcpy(block, unit + 32 * k + 2 * row, 2); }
};

struct BF16 {
  static constexpr int kElements = 1, kBytes = 2, kUnitElements = 2, kUnitBytes = 64;
  static void dequantize(const uint8_t* block, float* out) { *out = bf16_to_float(load_u16(block)); }
  static void pack(const uint8_t* block, uint8_t* unit, int k, int row) { memcpy(unit + 4 * row + 2 * k, block, 2); }
  static void unpack(const uint8_t* unit, int k, int row, uint8_t* block) { memcpy(block, unit + 4 * row + 2 * k, 2); }
};

}  // namespace puna::quant
#endif
