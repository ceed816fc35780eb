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

PUNA_INLINE void store_u16(uint8_t* p, uint16_t x) { memcpy(p, &x, sizeof x); }

// Codes of a block of 32 as Q4_0 stores them: the low four bits of elements i and i + 16 in byte i.
PUNA_INLINE void store_nibbles(const uint8_t* codes, uint8_t* bytes) {
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] << 4));
}
// Bits 2·s, 2·s+1 of 32 bytes for each 32 of 128 codes: their bits from `shift` on, two of them.
PUNA_INLINE void store_two_bits(const uint8_t* codes, int shift, uint8_t* bytes) {
  for (int i = 0; i < 32; ++i) {
    int byte = 0;
    for (int s = 0; s < 4; ++s) byte |= ((codes[32 * s + i] >> shift) & 3) << (2 * s);
    bytes[i] = static_cast<uint8_t>(byte);
  }
}
// Bit `shift` of each 32 of 256 codes: bit s of byte i is that of element 32·s + i.
PUNA_INLINE void store_one_bit(const uint8_t* codes, int shift, uint8_t* bytes) {
  for (int i = 0; i < 32; ++i) {
    int byte = 0;
    for (int s = 0; s < 8; ++s) byte |= ((codes[32 * s + i] >> shift) & 1) << s;
    bytes[i] = static_cast<uint8_t>(byte);
  }
}
// Low nibbles of 64 codes in 32 bytes: the first 32 in the low, the others in the high halves.
PUNA_INLINE void store_nibble_pair(const uint8_t* first, const uint8_t* second, uint8_t* bytes) {
  for (int i = 0; i < 32; ++i) bytes[i] = static_cast<uint8_t>((first[i] & 15) | (second[i] << 4));
}

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
