// Q2_K and Q3_K: 2- and 3-bit codes in super-blocks of 256, with a scale per 16.
//
// Stored, Q2_K, 84 bytes: 16 bytes (low nibble scale, high nibble min), 64 bytes of 2-bit codes, float16 d, float16
//   dmin. Each half of 128 elements takes 32 bytes; element 32·s+l of the half is bits 2·s, 2·s+1 of byte l.
//   Value (d·scale)·q - dmin·min.
// Stored, Q3_K, 110 bytes: 32 bytes of third bits (bit s of byte l: element 32·s+l; a clear bit subtracts 4), 64 bytes
//   of 2-bit codes as in Q2_K, 12 bytes of 6-bit scales (below, minus 32), float16 d. Value (d·scale)·q, q in -4..3.
//
// Packed, one super-block of 16 rows, a head and then per 64 k what they need:
//   Q2_K  1600 bytes: d[16], dmin[16] float16; scale[4][16], min[4][16] bytes, low[2][2][16][4]
//   Q3_K  1856 bytes: d[16] float16, 32 bytes of padding; scale[4][16] signed bytes, third[2][16][4], low[2][2][16][4]
// Bits 2·f, 2·f+1 of byte j of low[block][h][row] belong to k = 16·h + 4·f + j; bit I of byte j of third[block][row] to
// k = 4·I + j.
//
// Product, blocks of 32 ascending: S = s0 · sum of q·a over the first 16 k + s1 · the same over the other 16, exactly;
// acc = fma(float(S)·d, da, acc). Q2_K then, with M = m0 · sum of a over the first 16 k + m1 · the same over the others,
// exactly: acc = fma(-(float(M)·dmin), da, acc).
#pragma once

#include "format.h"

namespace puna {

struct Q2_KLayout {
  static constexpr int kElements = 256, kBytes = 84, kUnitElements = 256, kUnitBytes = 1600;
  static constexpr int group(int block) { return 64 + 384 * (block / 2); }
  static constexpr int sub_scales(int block) { return group(block) + 32 * (block % 2); }
  static constexpr int sub_mins(int block) { return group(block) + 64 + 32 * (block % 2); }
  static constexpr int low(int block) { return group(block) + 128 + 128 * (block % 2); }
};
struct Q3_KLayout {
  static constexpr int kElements = 256, kBytes = 110, kUnitElements = 256, kUnitBytes = 1856;
  static constexpr int group(int block) { return 64 + 448 * (block / 2); }
  static constexpr int sub_scales(int block) { return group(block) + 32 * (block % 2); }
  static constexpr int third(int block) { return group(block) + 64 + 64 * (block % 2); }
  static constexpr int low(int block) { return group(block) + 192 + 128 * (block % 2); }
};

}  // namespace puna

#ifndef PUNA_NS
#include "bits.h"

namespace puna::quant {

struct Q2_K : Q2_KLayout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block + 80), dmin = load_half(block + 82);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(block[group] & 15), low = dmin * static_cast<float>(block[group] >> 4);
      const uint8_t* codes = block + 16 + 32 * (group / 8) + 16 * (group % 2);
      const int shift = 2 * (group % 8 / 2);
      for (int i = 0; i < 16; ++i) *out++ = scale * static_cast<float>((codes[i] >> shift) & 3) - low;
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    for (int g = 0; g < 16; ++g) block[g] = static_cast<uint8_t>(parts.scales[g] | (parts.mins[g] << 4));
    for (int half = 0; half < 2; ++half) store_two_bits(parts.codes + 128 * half, 0, block + 16 + 32 * half);
    store_u16(block + 80, parts.d);
    store_u16(block + 82, parts.m);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int, int row) {
    memcpy(unit + 2 * row, block + 80, 2);
    memcpy(unit + 32 + 2 * row, block + 82, 2);
    for (int s = 0; s < 8; ++s) {
      for (int half = 0; half < 2; ++half) {
        unit[sub_scales(s) + 16 * half + row] = block[2 * s + half] & 15;
        unit[sub_mins(s) + 16 * half + row] = block[2 * s + half] >> 4;
      }
      pack_two_bits(block + 16 + 32 * (s / 4), s % 4, unit + low(s), row);
    }
  }
  static void unpack(const uint8_t* unit, int, int row, uint8_t* block) {
    memset(block, 0, kBytes);
    memcpy(block + 80, unit + 2 * row, 2);
    memcpy(block + 82, unit + 32 + 2 * row, 2);
    for (int s = 0; s < 8; ++s) {
      for (int half = 0; half < 2; ++half) {
        const int scale = unit[sub_scales(s) + 16 * half + row], min = unit[sub_mins(s) + 16 * half + row];
        block[2 * s + half] = static_cast<uint8_t>(scale | (min << 4));
      }
      unpack_two_bits(unit + low(s), row, s % 4, block + 16 + 32 * (s / 4));
    }
  }
};

struct Q3_K : Q3_KLayout {
  // Scale g: the low four bits are nibble g/8 of byte g%8, the upper two are bits 2·(g/4), 2·(g/4)+1 of byte 8+g%4.
  static int scale(const uint8_t* packed, int g) {
    const int low = (packed[g % 8] >> (4 * (g / 8))) & 15, high = (packed[8 + g % 4] >> (2 * (g / 4))) & 3;
    return (low | (high << 4)) - 32;
  }
  // The same into bytes that are zero.
  static void set_scale(uint8_t* packed, int g, int scale) {
    const int stored = scale + 32;
    uint8_t &lower = packed[g % 8], &upper = packed[8 + g % 4];
    lower = static_cast<uint8_t>(lower | ((stored & 15) << (4 * (g / 8))));
    upper = static_cast<uint8_t>(upper | ((stored >> 4) << (2 * (g / 4))));
  }
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block + 108);
    for (int group = 0; group < 16; ++group) {
      const float group_scale = d * static_cast<float>(scale(block + 96, group));
      const uint8_t* codes = block + 32 + 32 * (group / 8) + 16 * (group % 2);
      const uint8_t* third = block + 16 * (group % 2);
      const int shift = 2 * (group % 8 / 2);
      for (int i = 0; i < 16; ++i) {
        const int q = ((codes[i] >> shift) & 3) - (((third[i] >> (group / 2)) & 1) != 0 ? 0 : 4);
        *out++ = group_scale * static_cast<float>(q);
      }
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    store_one_bit(parts.codes, 2, block);
    for (int half = 0; half < 2; ++half) store_two_bits(parts.codes + 128 * half, 0, block + 32 + 32 * half);
    memset(block + 96, 0, 12);
    for (int g = 0; g < 16; ++g) set_scale(block + 96, g, parts.scales[g]);
    store_u16(block + 108, parts.d);
  }
  static void pack(const uint8_t* block, uint8_t* unit, int, int row) {
    memcpy(unit + 2 * row, block + 108, 2);
    for (int s = 0; s < 8; ++s) {
      unit[sub_scales(s) + row] = static_cast<uint8_t>(scale(block + 96, 2 * s));
      unit[sub_scales(s) + 16 + row] = static_cast<uint8_t>(scale(block + 96, 2 * s + 1));
      pack_bit(block, s, unit + third(s), row);
      pack_two_bits(block + 32 + 32 * (s / 4), s % 4, unit + low(s), row);
    }
  }
  static void unpack(const uint8_t* unit, int, int row, uint8_t* block) {
    memset(block, 0, kBytes);
    memcpy(block + 108, unit + 2 * row, 2);
    for (int s = 0; s < 8; ++s) {
      for (int half = 0; half < 2; ++half) {
        set_scale(block + 96, 2 * s + half, static_cast<int8_t>(unit[sub_scales(s) + 16 * half + row]));
      }
      unpack_bit(unit + third(s), row, s, block);
      unpack_two_bits(unit + low(s), row, s % 4, block + 32 + 32 * (s / 4));
    }
  }
};

}  // namespace puna::quant

#else
#include "codes.h"

namespace puna::PUNA_NS {

struct Q2_KWeights : Q2_KLayout, UnsignedCodes<3, 0> {
  static constexpr bool kSubScales = true, kSubMins = true;
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return two_bits<I, 0>(unit + low(block), p);
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int, int p) { return halves(unit, p); }
  PUNA_INLINE fvec min_scale(const uint8_t* unit, int p) { return halves(unit + 32, p); }
  PUNA_INLINE const int8_t* sub_scale(const uint8_t* unit, int block, int j, int p) {
    return reinterpret_cast<const int8_t*>(unit) + sub_scales(block) + 16 * j + kNativeRows * p;
  }
  PUNA_INLINE const int8_t* sub_min(const uint8_t* unit, int block, int j, int p) {
    return reinterpret_cast<const int8_t*>(unit) + sub_mins(block) + 16 * j + kNativeRows * p;
  }
};

struct Q3_KWeights : Q3_KLayout, UnsignedCodes<7, 4> {
  static constexpr bool kSubScales = true;
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return bor(two_bits<I, 0>(unit + low(block), p), one_bit<I, 2>(unit + third(block), p));
  }
  PUNA_INLINE fvec scale(const uint8_t* unit, int, int p) { return halves(unit, p); }
  PUNA_INLINE const int8_t* sub_scale(const uint8_t* unit, int block, int j, int p) {
    return reinterpret_cast<const int8_t*>(unit) + sub_scales(block) + 16 * j + kNativeRows * p;
  }
};

}  // namespace puna::PUNA_NS
#endif
