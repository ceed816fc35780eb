// Pairs of int16 in each of sixteen 32-bit lanes, and their exact products.
#pragma once

#include "simd.h"

namespace puna::PUNA_NS {

// acc + a.low * b.low + a.high * b.high in each lane.
// bytes_low, bytes_high: bytes 0 and 2, or 1 and 3, of each lane as a pair.
// pair_bytes: lane i is the pair (a[i], b[i]) of int8.
// store_i16: lanes must lie in -32768..32767.
#if defined(PUNA_VARIANT_AVX512) || defined(PUNA_VARIANT_AMX)

PUNA_INLINE i32x16 dot2(i32x16 acc, i32x16 a, i32x16 b) { return {_mm512_dpwssd_epi32(acc.v, a.v, b.v)}; }
PUNA_INLINE i32x16 bytes_low(i32x16 a) { return {_mm512_srai_epi16(_mm512_slli_epi16(a.v, 8), 8)}; }
PUNA_INLINE i32x16 bytes_high(i32x16 a) { return {_mm512_srai_epi16(a.v, 8)}; }
PUNA_INLINE i32x16 pair_bytes(const int8_t* a, const int8_t* b) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
  const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b));
  return {_mm512_cvtepi8_epi16(_mm256_set_m128i(_mm_unpackhi_epi8(x, y), _mm_unpacklo_epi8(x, y)))};
}
PUNA_INLINE void store_i16(int16_t* p, i32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}

#elif defined(PUNA_VARIANT_AVX2)

PUNA_INLINE i32x16 dot2(i32x16 acc, i32x16 a, i32x16 b) {
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
PUNA_INLINE i32x16 bytes_low(i32x16 a) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(a.lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(a.hi, 8), 8)};
}
PUNA_INLINE i32x16 bytes_high(i32x16 a) { return {_mm256_srai_epi16(a.lo, 8), _mm256_srai_epi16(a.hi, 8)}; }
PUNA_INLINE i32x16 pair_bytes(const int8_t* a, const int8_t* b) {
  const __m128i x = load_m128i(a), y = load_m128i(b);
  return {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y))};
}
PUNA_INLINE void store_i16(int16_t* p, i32x16 a) {
  store_m256i(p, _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8));
}

#elif defined(PUNA_VARIANT_NEON)

PUNA_INLINE int32x4_t dot2_part(int32x4_t acc, int32x4_t a, int32x4_t b) {
  const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
  return vaddq_s32(acc, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}
PUNA_INLINE i32x16 dot2(i32x16 acc, i32x16 a, i32x16 b) {
  return {dot2_part(acc.q0, a.q0, b.q0), dot2_part(acc.q1, a.q1, b.q1), dot2_part(acc.q2, a.q2, b.q2),
          dot2_part(acc.q3, a.q3, b.q3)};
}
PUNA_INLINE int32x4_t high_part(int32x4_t a) {
  return vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_s32(a), 8));
}
PUNA_INLINE int32x4_t low_part(int32x4_t a) {
  return high_part(vreinterpretq_s32_s16(vshlq_n_s16(vreinterpretq_s16_s32(a), 8)));
}
PUNA_INLINE i32x16 bytes_low(i32x16 a) { return {low_part(a.q0), low_part(a.q1), low_part(a.q2), low_part(a.q3)}; }
PUNA_INLINE i32x16 bytes_high(i32x16 a) {
  return {high_part(a.q0), high_part(a.q1), high_part(a.q2), high_part(a.q3)};
}
PUNA_INLINE i32x16 pair_bytes(const int8_t* a, const int8_t* b) {
  const int8x16_t x = vld1q_s8(a), y = vld1q_s8(b);
  const int8x16_t low = vzip1q_s8(x, y), high = vzip2q_s8(x, y);
  return {vreinterpretq_s32_s16(vmovl_s8(vget_low_s8(low))), vreinterpretq_s32_s16(vmovl_high_s8(low)),
          vreinterpretq_s32_s16(vmovl_s8(vget_low_s8(high))), vreinterpretq_s32_s16(vmovl_high_s8(high))};
}
PUNA_INLINE void store_i16(int16_t* p, i32x16 a) {
  vst1q_s16(p, vcombine_s16(vmovn_s32(a.q0), vmovn_s32(a.q1)));
  vst1q_s16(p + 8, vcombine_s16(vmovn_s32(a.q2), vmovn_s32(a.q3)));
}

#else

PUNA_INLINE int32_t pair_of(int32_t low, int32_t high) {
  return wrap((word(high) << 16) | (word(low) & 0xffffu));
}
PUNA_INLINE int32_t low_of(int32_t pair) { return static_cast<int16_t>(pair & 0xffff); }
PUNA_INLINE int32_t high_of(int32_t pair) { return pair >> 16; }
PUNA_INLINE i32x16 dot2(i32x16 acc, i32x16 a, i32x16 b) {
  for (int i = 0; i < 16; ++i) acc.v[i] += low_of(a.v[i]) * low_of(b.v[i]) + high_of(a.v[i]) * high_of(b.v[i]);
  return acc;
}
PUNA_INLINE i32x16 bytes_low(i32x16 a) {
  for (int i = 0; i < 16; ++i) {
    a.v[i] = pair_of(static_cast<int8_t>(a.v[i] & 0xff), static_cast<int8_t>((a.v[i] >> 16) & 0xff));
  }
  return a;
}
PUNA_INLINE i32x16 bytes_high(i32x16 a) {
  for (int i = 0; i < 16; ++i) {
    a.v[i] = pair_of(static_cast<int8_t>((a.v[i] >> 8) & 0xff), static_cast<int8_t>((a.v[i] >> 24) & 0xff));
  }
  return a;
}
PUNA_INLINE i32x16 pair_bytes(const int8_t* a, const int8_t* b) {
  i32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = pair_of(a[i], b[i]);
  return r;
}
PUNA_INLINE void store_i16(int16_t* p, i32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(a.v[i]);
}

#endif

}  // namespace puna::PUNA_NS
