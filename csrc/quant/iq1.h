// IQ1_S and IQ1_M: a codebook of -1, 0, 1 shifted by 1/8, super-blocks of 256. No packed form.
//
// An 11-bit index into the codebook (iq_grids.h) gives eight elements; delta is -1/8 where a bit is set, else 1/8.
// Stored:
//   IQ1_S  50 bytes: float16 d; 32 index bytes; per 32 elements a word: four times three upper index bits, a 3-bit
//          scale s, the sign of delta. Value (d·(2·s+1))·(code + delta).
//   IQ1_M  56 bytes: 32 index bytes; per 8 elements a nibble: three upper index bits and the sign of delta; four words
//          of four 3-bit scales s (one per 16 elements) whose upper four bits, first word lowest, are the float16 d.
//          The same value.
#pragma once

#include "bits.h"
#include "iq_grids.h"

namespace puna::quant {

PUNA_INLINE void put_iq1(int index, bool negative, float scale, float* out) {
  const float delta = negative ? -0.125f : 0.125f;
  for (int i = 0; i < 8; ++i) {
    out[i] = scale * (static_cast<float>(((kIq1SGrid[index] >> (2 * i)) & 3) - 1) + delta);
  }
}

struct IQ1_S {
  static constexpr int kElements = 256, kBytes = 50;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 32; ++i) {
      const int word = load_u16(block + 34 + 2 * (i / 4));
      const float scale = d * static_cast<float>(2 * ((word >> 12) & 7) + 1);
      put_iq1(block[2 + i] | (((word >> (3 * (i % 4))) & 7) << 8), (word & 0x8000) != 0, scale, out + 8 * i);
    }
  }
};

struct IQ1_M {
  static constexpr int kElements = 256, kBytes = 56;
  static void dequantize(const uint8_t* block, float* out) {
    const uint8_t* scales = block + 48;
    int bits = 0;
    for (int i = 0; i < 4; ++i) bits |= (load_u16(scales + 2 * i) >> 12) << (4 * i);
    const float d = half_to_float(static_cast<uint16_t>(bits));
    for (int i = 0; i < 32; ++i) {
      const int upper = (block[32 + i / 2] >> (4 * (i % 2))) & 15;
      const int s = (load_u16(scales + 2 * (i / 8)) >> (3 * (i / 2 % 4))) & 7;
      const float scale = d * static_cast<float>(2 * s + 1);
      put_iq1(block[i] | ((upper & 7) << 8), (upper & 8) != 0, scale, out + 8 * i);
    }
  }
};

}  // namespace puna::quant
