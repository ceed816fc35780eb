// Reading and writing little-endian words of weight blocks, and the bit shuffles the packed forms need.
#pragma once

#include "../simd/half.h"

namespace puna::quant {

PUNA_INLINE uint16_t load_u16(const uint8_t* p) {
  uint16_t x;
  memcpy(&x, p, sizeof x);
  return x;
}
PUNA_INLINE uint32_t load_u32(const uint8_t* p) {
  uint32_t x;
  memcpy(&x, p, sizeof x);
  return x;
}
PUNA_INLINE float load_half(const uint8_t* p) { return half_to_float(load_u16(p)); }
PUNA_INLINE float load_float(const uint8_t* p) { return float_of(load_u32(p)); }
PUNA_INLINE void store_u32(uint8_t* p, uint32_t x) { memcpy(p, &x, sizeof x); }

// The bits of x at positions 0, 4, 8 … 28, as one byte; and back.
PUNA_INLINE uint32_t gather_fourths(uint32_t x) {
  x &= 0x11111111u;
  x = (x | (x >> 3)) & 0x03030303u;
  x = (x | (x >> 6)) & 0x000f000fu;
  return (x | (x >> 12)) & 0xffu;
}
PUNA_INLINE uint32_t spread_fourths(uint32_t x) {
  x = (x | (x << 12)) & 0x000f000fu;
  x = (x | (x << 6)) & 0x03030303u;
  return (x | (x << 3)) & 0x11111111u;
}

// In packed forms four consecutive k of a row are one 32-bit lane. A "nibble vector" i of a block of 32 holds k = 4·i+j
// in the low and k = 16+4·i+j in the high half of byte j. These two rearrange the low or the high nibbles of 32
// consecutive bytes (`a` and `b` are the words at 4·i and 16+4·i) into word i, and back.
PUNA_INLINE uint32_t join_low_nibbles(uint32_t a, uint32_t b) { return (a & 0x0f0f0f0fu) | ((b & 0x0f0f0f0fu) << 4); }
PUNA_INLINE uint32_t join_high_nibbles(uint32_t a, uint32_t b) { return ((a >> 4) & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u); }

// Two bits of 32 consecutive bytes, those at 2·s, against two vectors: of k = 16·h + 4·f + j, they are bits 2·f, 2·f+1 of
// byte j of the row's word of vector h. Unpacking adds them to the bytes.
PUNA_INLINE void pack_two_bits(const uint8_t* bytes, int s, uint8_t* vectors, int row) {
  for (int h = 0; h < 2; ++h) {
    uint32_t bits = 0;
    for (int f = 0; f < 4; ++f) bits |= ((load_u32(bytes + 16 * h + 4 * f) >> (2 * s)) & 0x03030303u) << (2 * f);
    store_u32(vectors + 64 * h + 4 * row, bits);
  }
}
PUNA_INLINE void unpack_two_bits(const uint8_t* vectors, int row, int s, uint8_t* bytes) {
  for (int word = 0; word < 8; ++word) {
    const uint32_t fields = load_u32(vectors + 64 * (word / 4) + 4 * row) >> (2 * (word % 4));
    store_u32(bytes + 4 * word, load_u32(bytes + 4 * word) | ((fields & 0x03030303u) << (2 * s)));
  }
}
// The same for one bit, that at s, and one vector: of k = 4·I + j, it is bit I of byte j.
PUNA_INLINE void pack_bit(const uint8_t* bytes, int s, uint8_t* vector, int row) {
  uint32_t bits = 0;
  for (int word = 0; word < 8; ++word) bits |= ((load_u32(bytes + 4 * word) >> s) & 0x01010101u) << word;
  store_u32(vector + 4 * row, bits);
}
PUNA_INLINE void unpack_bit(const uint8_t* vector, int row, int s, uint8_t* bytes) {
  const uint32_t fields = load_u32(vector + 4 * row);
  for (int word = 0; word < 8; ++word) {
    store_u32(bytes + 4 * word, load_u32(bytes + 4 * word) | (((fields >> word) & 0x01010101u) << s));
  }
}

}  // namespace puna::quant
