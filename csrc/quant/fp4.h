// MXFP4 and NVFP4: 4-bit floats (e2m1) with a shared scale. No packed form.
//
// The sixteen codes stand for 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. The table below holds twice that, so the
// scales are halved.
// Stored, MXFP4, 17 bytes: an 8-bit exponent e, 16 bytes of nibbles as in Q4_0. Value 2**(e-128)·table[q], 32 elements.
// Stored, NVFP4, 36 bytes: four scales in unsigned e4m3 (bias 7; 0x7F counts as 0), then per scale 8 bytes of nibbles:
//   the low ones are its first eight elements, the high ones the other eight. Value (scale/2)·table[q], 64 elements.
#pragma once

#include "bits.h"

namespace puna::quant {

inline constexpr int8_t kFp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct MXFP4 {
  static constexpr int kElements = 32, kBytes = 17;
  static void dequantize(const uint8_t* block, float* out) {
    const uint32_t e = block[0];
    const float d = float_of(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(kFp4Values[block[1 + i] & 15]);
      out[i + 16] = d * static_cast<float>(kFp4Values[block[1 + i] >> 4]);
    }
  }
};

struct NVFP4 {
  static constexpr int kElements = 64, kBytes = 36;
  static float scale(uint8_t x) {
    if (x == 0x7f) return 0.0f;
    const uint32_t exponent = (x >> 3) & 15u, mantissa = x & 7u;
    if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-10f;
    return float_of(((exponent + 119) << 23) | (mantissa << 20));
  }
  static void dequantize(const uint8_t* block, float* out) {
    for (int group = 0; group < 4; ++group) {
      const float d = scale(block[group]);
      const uint8_t* codes = block + 4 + 8 * group;
      for (int i = 0; i < 8; ++i) {
        out[16 * group + i] = d * static_cast<float>(kFp4Values[codes[i] & 15]);
        out[16 * group + 8 + i] = d * static_cast<float>(kFp4Values[codes[i] >> 4]);
      }
    }
  }
};

}  // namespace puna::quant
