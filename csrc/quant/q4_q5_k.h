// Q4_K and Q5_K: super-blocks of 256 in eight sub-blocks of 32, each with a 6-bit scale and a 6-bit min.
//
// Stored, Q4_K, 144 bytes: float16 d, float16 dmin, 12 bytes of scales and mins, 128 bytes of nibbles.
//   With p the 12 bytes: for j < 4 scale = p[j] & 63, min = p[j+4] & 63; for j >= 4 scale = (p[j+4] & 15) |
//   p[j-4]>>6<<4, min = p[j+4]>>4 | p[j]>>6<<4. Each 32 bytes of nibbles hold two sub-blocks: the low nibbles, then the
//   high ones. Value (d·scale)·q - dmin·min.
// Stored, Q5_K, 176 bytes: the same with 32 bytes of upper bits before the nibbles: bit j of byte e is bit 4 of element
//   e of sub-block j.
//
// Packed, one super-block of 16 rows:
//   Q4_K  2368 bytes: d[16], dmin[16] float16, scale[8][16], min[8][16] bytes, nibbles[8][4][16][4]
//   Q5_K  2880 bytes: the same head, then per two sub-blocks upper[2][16][4], nibbles[2][4][16][4]
// The 6-bit numbers are widened to bytes. Nibble vectors and upper bits of a sub-block are those of q4.h and q5.h.
//
// Product, sub-blocks ascending: S = scale · sum of q·a exactly; acc = fma(float(S)·d, da, acc); then
// acc = fma(-(dmin·min), da·float(sum a), acc). Since d·scale and dmin·min are exact in float32 and |S| < 2**24, the
// kernels may as well compute float(sum of q·a)·(d·scale): it is rounded from the same exact product.
#pragma once

#include "format.h"
#include "q5.h"

namespace puna {

struct Q4_KLayout {
  static constexpr int kElements = 256, kBytes = 144, kUnitElements = 256, kUnitBytes = 2368;
  static constexpr int kScales = 64, kMins = 192, kCodes = 320;
};
struct Q5_KLayout {
  static constexpr int kElements = 256, kBytes = 176, kUnitElements = 256, kUnitBytes = 2880;
  static constexpr int kScales = 64, kMins = 192, kGroups = 320, kGroupBytes = 640;
  static constexpr int upper(int block) { return kGroups + kGroupBytes * (block / 2) + 64 * (block % 2); }
  static constexpr int nibble(int block) { return kGroups + kGroupBytes * (block / 2) + 128 + 256 * (block % 2); }
};

}  // namespace puna

#ifndef PUNA_NS

namespace puna::quant {

PUNA_INLINE void split_scales(const uint8_t* p, uint8_t* scale, uint8_t* min) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = p[j] & 63;
    min[j] = p[j + 4] & 63;
    scale[j + 4] = static_cast<uint8_t>((p[j + 8] & 15) | ((p[j] >> 6) << 4));
    min[j + 4] = static_cast<uint8_t>((p[j + 8] >> 4) | ((p[j + 4] >> 6) << 4));
  }
}
PUNA_INLINE void join_scales(const uint8_t* scale, const uint8_t* min, uint8_t* p) {
  for (int j = 0; j < 4; ++j) {
    p[j] = static_cast<uint8_t>(scale[j] | ((scale[j + 4] >> 4) << 6));
    p[j + 4] = static_cast<uint8_t>(min[j] | ((min[j + 4] >> 4) << 6));
    p[j + 8] = static_cast<uint8_t>((scale[j + 4] & 15) | (min[j + 4] << 4));
  }
}

// The first 16 bytes of a super-block, into the head of a unit.
PUNA_INLINE void pack_head(const uint8_t* block, uint8_t* unit, int row) {
  uint8_t scale[8], min[8];
  split_scales(block + 4, scale, min);
  memcpy(unit + 2 * row, block, 2);
  memcpy(unit + 32 + 2 * row, block + 2, 2);
  for (int j = 0; j < 8; ++j) {
    unit[Q4_KLayout::kScales + 16 * j + row] = scale[j];
    unit[Q4_KLayout::kMins + 16 * j + row] = min[j];
  }
}
PUNA_INLINE void unpack_head(const uint8_t* unit, int row, uint8_t* block) {
  uint8_t scale[8], min[8];
  for (int j = 0; j < 8; ++j) {
    scale[j] = unit[Q4_KLayout::kScales + 16 * j + row];
    min[j] = unit[Q4_KLayout::kMins + 16 * j + row];
  }
  memcpy(block, unit + 2 * row, 2);
  memcpy(block + 2, unit + 32 + 2 * row, 2);
  join_scales(scale, min, block + 4);
}
PUNA_INLINE void encode_head(const BlockParts& parts, uint8_t* block) {
  uint8_t scale[8];
  for (int j = 0; j < 8; ++j) scale[j] = static_cast<uint8_t>(parts.scales[j]);
  store_u16(block, parts.d);
  store_u16(block + 2, parts.m);
  join_scales(scale, parts.mins, block + 4);
}
// Two sub-blocks: 32 bytes of nibbles against two times four nibble vectors.
PUNA_INLINE void pack_nibble_pair(const uint8_t* codes, uint8_t* low, uint8_t* high, int row) {
  for (int i = 0; i < 4; ++i) {
    const uint32_t a = load_u32(codes + 4 * i), b = load_u32(codes + 16 + 4 * i);
    store_u32(low + 64 * i + 4 * row, join_low_nibbles(a, b));
    store_u32(high + 64 * i + 4 * row, join_high_nibbles(a, b));
  }
}
PUNA_INLINE void unpack_nibble_pair(const uint8_t* low, const uint8_t* high, int row, uint8_t* codes) {
  for (int i = 0; i < 4; ++i) {
    const uint32_t a = load_u32(low + 64 * i + 4 * row), b = load_u32(high + 64 * i + 4 * row);
    store_u32(codes + 4 * i, join_low_nibbles(a, b));
    store_u32(codes + 16 + 4 * i, join_high_nibbles(a, b));
  }
}

struct Q4_K : Q4_KLayout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block), dmin = load_half(block + 2);
    uint8_t scale[8], min[8];
    split_scales(block + 4, scale, min);
    for (int j = 0; j < 8; ++j) {
      const float step = d * static_cast<float>(scale[j]), low = dmin * static_cast<float>(min[j]);
      const uint8_t* codes = block + 16 + 32 * (j / 2);
      for (int i = 0; i < 32; ++i) *out++ = step * static_cast<float>((codes[i] >> (4 * (j % 2))) & 15) - low;
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    encode_head(parts, block);
    for (int g = 0; g < 4; ++g) {
      store_nibble_pair(parts.codes + 64 * g, parts.codes + 64 * g + 32, block + 16 + 32 * g);
    }
  }
  static void pack(const uint8_t* block, uint8_t* unit, int, int row) {
    pack_head(block, unit, row);
    for (int g = 0; g < 4; ++g) {
      uint8_t* vectors = unit + kCodes + 512 * g;
      pack_nibble_pair(block + 16 + 32 * g, vectors, vectors + 256, row);
    }
  }
  static void unpack(const uint8_t* unit, int, int row, uint8_t* block) {
    unpack_head(unit, row, block);
    for (int g = 0; g < 4; ++g) {
      const uint8_t* vectors = unit + kCodes + 512 * g;
      unpack_nibble_pair(vectors, vectors + 256, row, block + 16 + 32 * g);
    }
  }
};

struct Q5_K : Q5_KLayout {
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block), dmin = load_half(block + 2);
    uint8_t scale[8], min[8];
    split_scales(block + 4, scale, min);
    for (int j = 0; j < 8; ++j) {
      const float step = d * static_cast<float>(scale[j]), low = dmin * static_cast<float>(min[j]);
      const uint8_t* codes = block + 48 + 32 * (j / 2);
      for (int i = 0; i < 32; ++i) {
        const int q = ((codes[i] >> (4 * (j % 2))) & 15) | (((block[16 + i] >> j) & 1) << 4);
        *out++ = step * static_cast<float>(q) - low;
      }
    }
  }
  static void encode(const BlockParts& parts, uint8_t* block) {
    encode_head(parts, block);
    store_one_bit(parts.codes, 4, block + 16);
    for (int g = 0; g < 4; ++g) {
      store_nibble_pair(parts.codes + 64 * g, parts.codes + 64 * g + 32, block + 48 + 32 * g);
    }
  }
  static void pack(const uint8_t* block, uint8_t* unit, int, int row) {
    pack_head(block, unit, row);
    for (int j = 0; j < 8; ++j) pack_bit(block + 16, j, unit + upper(j), row);
    for (int g = 0; g < 4; ++g) {
      pack_nibble_pair(block + 48 + 32 * g, unit + nibble(2 * g), unit + nibble(2 * g + 1), row);
    }
  }
  static void unpack(const uint8_t* unit, int, int row, uint8_t* block) {
    unpack_head(unit, row, block);
    memset(block + 16, 0, 32);
    for (int j = 0; j < 8; ++j) unpack_bit(unit + upper(j), row, j, block + 16);
    for (int g = 0; g < 4; ++g) {
      unpack_nibble_pair(unit + nibble(2 * g), unit + nibble(2 * g + 1), row, block + 48 + 32 * g);
    }
  }
};

}  // namespace puna::quant

#else

namespace puna::PUNA_NS {

// The scales and mins that Q4_K and Q5_K have in common.
struct SuperBlockHead {
  PUNA_INLINE fvec scale(const uint8_t* unit, int block, int p) {
    return mul(halves(unit, p), unsigned_bytes(unit + Q4_KLayout::kScales + 16 * block, p));
  }
  PUNA_INLINE fvec offset(const uint8_t* unit, int block, int p) {
    return neg(mul(halves(unit + 32, p), unsigned_bytes(unit + Q4_KLayout::kMins + 16 * block, p)));
  }
};

struct Q4_KWeights : Q4_KLayout, UnsignedCodes<15, 0>, SuperBlockHead {
  static constexpr bool kHasOffset = true;
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return nibbles<I>(unit + kCodes + 256 * block, p);
  }
};

struct Q5_KWeights : Q5_KLayout, UnsignedCodes<31, 0>, SuperBlockHead {
  static constexpr bool kHasOffset = true;
  template <int I>
  PUNA_INLINE bvec codes(const uint8_t* unit, int block, int p) {
    return bor(nibbles<I>(unit + nibble(block), p), one_bit<I, 4>(unit + upper(block), p));
  }
};

}  // namespace puna::PUNA_NS
#endif
