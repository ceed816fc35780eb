// Conversions between float32 and the 16-bit formats, one value at a time, in integers: subnormals are exact whatever
// the flushing mode, and the results equal those of F16C and NEON.
#pragma once

#include <stdint.h>
#include <string.h>

#ifndef PUNA_INLINE
#define PUNA_INLINE static inline __attribute__((always_inline))
#endif

namespace puna {

PUNA_INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
PUNA_INLINE float float_of(uint32_t x) { return __builtin_bit_cast(float, x); }

// Half to float: exact, NaN made quiet.
PUNA_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | (rest << 13) | (rest > 0x7c00u ? 0x400000u : 0u));
  if (rest >= 0x0400u) return float_of(sign | ((rest << 13) + 0x38000000u));
  return float_of(sign | bits_of(static_cast<float>(rest) * 0x1p-24f));
}
// Float to half: nearest even, overflow to infinity, NaN made quiet with its upper payload bits.
PUNA_INLINE uint16_t float_to_half(float x) {
  const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((rest >> 13) & 0x3ffu));
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (rest >= 0x38800000u) {
    const uint32_t rounded = rest + 0xfffu + ((rest >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  if (rest < 0x33000000u) return static_cast<uint16_t>(sign);
  // A half subnormal: adding 0.5 makes the float unit round at 2**-24.
  return static_cast<uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000u));
}
PUNA_INLINE uint16_t float_to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits | 0x400000u) >> 16);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
PUNA_INLINE float bf16_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

}  // namespace puna
