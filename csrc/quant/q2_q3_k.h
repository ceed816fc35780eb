// Q2_K and Q3_K: 2- and 3-bit codes in super-blocks of 256, with a scale per 16. No packed form: products go through
// float32 panels.
//
// Stored, Q2_K, 84 bytes: 16 bytes (low nibble scale, high nibble min), 64 bytes of 2-bit codes, float16 d, float16
//   dmin. Each half of 128 elements takes 32 bytes; element 32·s+l of the half is bits 2·s, 2·s+1 of byte l.
//   Value (d·scale)·q - dmin·min.
// Stored, Q3_K, 110 bytes: 32 bytes of third bits (bit s of byte l: element 32·s+l; a clear bit subtracts 4), 64 bytes
//   of 2-bit codes as in Q2_K, 12 bytes of 6-bit scales (below, minus 32), float16 d. Value (d·scale)·q, q in -4..3.
#pragma once

#include "bits.h"

namespace puna::quant {

struct Q2_K {
  static constexpr int kElements = 256, kBytes = 84;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block + 80), dmin = load_half(block + 82);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(block[group] & 15), low = dmin * static_cast<float>(block[group] >> 4);
      const uint8_t* codes = block + 16 + 32 * (group / 8) + 16 * (group % 2);
      const int shift = 2 * (group % 8 / 2);
      for (int i = 0; i < 16; ++i) *out++ = scale * static_cast<float>((codes[i] >> shift) & 3) - low;
    }
  }
};

struct Q3_K {
  static constexpr int kElements = 256, kBytes = 110;
  // Scale g: the low four bits are nibble g/8 of byte g%8, the upper two are bits 2·(g/4), 2·(g/4)+1 of byte 8+g%4.
  static int scale(const uint8_t* packed, int g) {
    const int low = (packed[g % 8] >> (4 * (g / 8))) & 15, high = (packed[8 + g % 4] >> (2 * (g / 4))) & 3;
    return (low | (high << 4)) - 32;
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
};

}  // namespace puna::quant
