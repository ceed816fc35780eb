// Q6_K: 6-bit codes in super-blocks of 256, with a signed 8-bit scale per 16.
//
// Stored, 210 bytes: 128 bytes of low nibbles, 64 bytes of upper two bits, 16 signed scales, float16 d. Each half of
//   128 elements has 64 nibble and 32 upper bytes; for l = 0..31, q1 = low nibble of ql[l], q2 = low of ql[l+32], q3 =
//   high of ql[l], q4 = high of ql[l+32], with bits 0-1, 2-3, 4-5, 6-7 of qh[l] above them, are elements l, l+32, l+64,
//   l+96. Value (d·scale)·(q-32).
//
// Packed, one super-block of 16 rows, 3392 bytes: d[16] float16 and 32 bytes of padding, then per 64 k
//   scale[4][16] signed bytes, upper[2][2][16][4], nibbles[2][4][16][4].
// What 64 k need lies together: apart, the hardware prefetcher loses the stream. Nibble vectors as in q4.h; bits 2·f,
// 2·f+1 of byte j of upper[block][h][row] belong to k = 16·h + 4·f + j.
//
// Product, blocks of 32 ascending: S = s0 · sum of (q-32)·a over the first 16 k + s1 · the same over the other 16,
// exactly (|S| < 2**24); acc = fma(float(S)·d, da, acc).
#pragma once

#include "format.h"

namespace puna {

struct Q6_KLayout {
  static constexpr int kElements = 256, kBytes = 210, kUnitElements = 256, kUnitBytes = 3392;
  static constexpr int group(int block) { return 64 + 832 * (block / 2); }
  static constexpr int sub_scales(int block) { return group(block) + 32 * (block % 2); }
  static constexpr int upper(int block) { return group(block) + 64 + 128 * (block % 2); }
  static constexpr int nibble(int block) { return group(block) + 320 + 256 * (block % 2); }
};

}  // namespace puna

#ifndef PUNA_NS
#include "bits.h"

namespace puna::quant {

struct Q6_K : Q6_KLayout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block + 208);
    for (int s = 0; s < 8; ++s) {
      const uint8_t* low = block + 64 * (s / 4) + 32 * (s % 2);
      const uint8_t* high = block + 128 + 32 * (s / 4);
      const int low_shift = 4 * (s % 4 / 2), high_shift = 2 * (s % 4);
      for (int half = 0; half < 2; ++half) {
        const float step = d * static_cast<float>(static_cast<int8_t>(block[192 + 2 * s + half]));
        for (int i = 16 * half; i < 16 * half + 16; ++i) {
          const int q = ((low[i] >> low_shift) & 15) | (((high[i] >> high_shift) & 3) << 4);
          *out++ = step * static_cast<float>(q - 32);
        }
      }
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    for (int half = 0; half < 2; ++half) {
      const uint8_t* codes = parts.codes + 128 * half;
      store_nibble_pair(codes, codes + 64, block + 64 * half);
      store_nibble_pair(codes + 32, codes + 96, block + 64 * half + 32);
      store_two_bits(codes, 4, block + 128 + 32 * half);
    }
    memcpy(block + 192, parts.scales, 16);
    store_u16(block + 208, parts.d);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int, int row) {
    memcpy(unit + 2 * row, block + 208, 2);
    for (int s = 0; s < 8; ++s) {
      unit[sub_scales(s) + row] = block[192 + 2 * s];
      unit[sub_scales(s) + 16 + row] = block[193 + 2 * s];
      const uint8_t* low = block + 64 * (s / 4) + 32 * (s % 2);
      for (int i = 0; i < 4; ++i) {
        const uint32_t a = load_u32(low + 4 * i), b = load_u32(low + 16 + 4 * i);
        store_u32(unit + nibble(s) + 64 * i + 4 * row, s % 4 < 2 ? join_low_nibbles(a, b) : join_high_nibbles(a, b));
      }
      pack_two_bits(block + 128 + 32 * (s / 4), s % 4, unit + upper(s), row);
    }
  }
  static void unpack(const uint8_t* unit, int, int row, uint8_t* block) {
    memcpy(block + 208, unit + 2 * row, 2);
    for (int s = 0; s < 8; ++s) {
      block[192 + 2 * s] = unit[sub_scales(s) + row];
      block[193 + 2 * s] = unit[sub_scales(s) + 16 + row];
    }
    for (int half = 0; half < 2; ++half) {
      for (int side = 0; side < 2; ++side) {
        const int s = 4 * half + side;
        for (int i = 0; i < 4; ++i) {
          const uint32_t a = load_u32(unit + nibble(s) + 64 * i + 4 * row);
          const uint32_t b = load_u32(unit + nibble(s + 2) + 64 * i + 4 * row);
          store_u32(block + 64 * half + 32 * side + 4 * i, join_low_nibbles(a, b));
          store_u32(block + 64 * half + 32 * side + 16 + 4 * i, join_high_nibbles(a, b));
        }
      }
    }
    memset(block + 128, 0, 64);
    for (int s = 0; s < 8; ++s) unpack_two_bits(unit + upper(s), row, s % 4, block + 128 + 32 * (s / 4));
  }
};

}  // namespace puna::quant

#else
#include "codes.h"

namespace puna::PUNA_NS {

struct Q6_KWeights : Q6_KLayout, UnsignedCodes<63, 32> {
  static constexpr bool kSubScales = true;
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return bor(nibbles<I>(unit + nibble(block), p), two_bits<I, 4>(unit + upper(block), p));
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int, int p) { return halves(unit, p); }
  PUNA_INLINE const int8_t* sub_scale(const uint8_t* unit, int block, int j, int p) {
    return reinterpret_cast<const int8_t*>(unit) + sub_scales(block) + 16 * j + kNativeRows * p;
  }
};

}  // namespace puna::PUNA_NS
#endif
