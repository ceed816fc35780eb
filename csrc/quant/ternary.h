// TQ1_0 and TQ2_0: codes -1, 0, 1 in blocks of 256 with one scale. No packed form.
//
// Stored, TQ1_0, 54 bytes: 48 bytes of five and 4 bytes of four base-3 digits, float16 d. Digit n of a byte is the
//   upper part of (byte·3**n mod 256)·3/256. Elements: digits 0..4 of bytes 0..31 (digit by digit, 32 elements each),
//   then of bytes 32..47 (16 each), then digits 0..3 of the last four bytes (4 each).
// Stored, TQ2_0, 66 bytes: 64 bytes of 2-bit codes, float16 d. Each 32 bytes hold 128 elements: element 32·s+l is bits
//   2·s, 2·s+1 of byte l.
// Value d·(q-1).
#pragma once

#include "bits.h"

namespace puna::quant {

struct TQ1_0 {
  static constexpr int kElements = 256, kBytes = 54;
  static float* digits(const uint8_t* bytes, int count, int digit_count, float d, float* out) {
    uint8_t power = 1;
    for (int n = 0; n < digit_count; ++n) {
      for (int i = 0; i < count; ++i) {
        const uint8_t shifted = static_cast<uint8_t>(bytes[i] * power);
        *out++ = d * static_cast<float>(((shifted * 3) >> 8) - 1);
      }
      power = static_cast<uint8_t>(power * 3);
    }
    return out;
  }
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block + 52);
    out = digits(block, 32, 5, d, out);
    out = digits(block + 32, 16, 5, d, out);
    digits(block + 48, 4, 4, d, out);
  }
};

struct TQ2_0 {
  static constexpr int kElements = 256, kBytes = 66;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block + 64);
    for (int half = 0; half < 2; ++half) {
      for (int shift = 0; shift < 8; shift += 2) {
        for (int i = 0; i < 32; ++i) *out++ = d * static_cast<float>(((block[32 * half + i] >> shift) & 3) - 1);
      }
    }
  }
};

}  // namespace puna::quant
