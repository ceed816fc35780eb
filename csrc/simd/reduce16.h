// Sixteen sums of sixteen lanes each, as one vector: lane i of the result is reduce_add of rows[i], bit for bit.
//
// The same tree as reduce_add (l and l+8, then +4, +2, +1), with the vectors folded into each other as they get shorter:
// 15 additions instead of 64.
#pragma once

#include "simd.h"

namespace puna::PUNA_NS {

#if defined(PUNA_VARIANT_AVX512) || defined(PUNA_VARIANT_AMX)

// Lanes of the folded vectors come out as 4·i+k for vector i+4·k, so vectors are taken in that order.
PUNA_INLINE f32x16 reduce_add16(const f32x16* rows) {
  __m512 eight[8], four[4], two[2];
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) {
    const int first = 2 * i, second = 2 * i + 1;
    const __m512 a = rows[4 * (first % 4) + first / 4].v, b = rows[4 * (second % 4) + second / 4].v;
    eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    const __m512 a = eight[2 * i], b = eight[2 * i + 1];
    four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2; ++i) {
    const __m512 a = four[2 * i], b = four[2 * i + 1];
    two[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd))};
}

#elif defined(PUNA_VARIANT_AVX2)

// Of eight vectors; lanes come out as 4·i+k for vector i+2·k.
PUNA_INLINE __m256 reduce_add8(const f32x16* rows) {
  __m256 four[4], two[2];
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    const int first = 2 * i, second = 2 * i + 1;
    const f32x16 a = rows[4 * (first % 2) + first / 2], b = rows[4 * (second % 2) + second / 2];
    const __m256 a8 = _mm256_add_ps(a.lo, a.hi), b8 = _mm256_add_ps(b.lo, b.hi);
    four[i] = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2; ++i) {
    const __m256 a = four[2 * i], b = four[2 * i + 1];
    two[i] = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
  }
  return _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd));
}
PUNA_INLINE f32x16 reduce_add16(const f32x16* rows) { return {reduce_add8(rows), reduce_add8(rows + 8)}; }

#elif defined(PUNA_VARIANT_NEON)

PUNA_INLINE float32x4_t reduce_add4(const f32x16* rows) {
  float32x4_t four[4];
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    four[i] = vaddq_f32(vaddq_f32(rows[i].q0, rows[i].q2), vaddq_f32(rows[i].q1, rows[i].q3));
  }
  const auto two = [](float32x4_t a, float32x4_t b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
  };
  return vpaddq_f32(two(four[0], four[1]), two(four[2], four[3]));
}
PUNA_INLINE f32x16 reduce_add16(const f32x16* rows) {
  return {reduce_add4(rows), reduce_add4(rows + 4), reduce_add4(rows + 8), reduce_add4(rows + 12)};
}

#else

PUNA_INLINE f32x16 reduce_add16(const f32x16* rows) {
  float sums[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sums[i] = reduce_add(rows[i]);
  return load(sums);
}

#endif

}  // namespace puna::PUNA_NS
