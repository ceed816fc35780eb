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

}  // namespace puna::quant
