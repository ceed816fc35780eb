// Sixteen sums of sixteen lanes each, as one vector: lane i of the result is reduce_add of vector i, bit for bit.
//
// The same tree as reduce_add (l and l+8, then +4, +2, +1), but vectors are folded into each other as they get shorter:
// 15 additions instead of 64. It goes in two steps, so that no more than four vectors have to wait in registers: `fold4`
// of the vectors numbered fold_member(g, 0) … fold_member(g, 3), for g = 0 … 3, then `fold_end` of the four results.
#pragma once

#include "simd.h"

namespace puna::PUNA_NS {

#if defined(PUNA_VARIANT_AVX512) || defined(PUNA_VARIANT_AMX)

using folded = __m512;
constexpr int fold_member(int group, int i) { return group + 4 * i; }
PUNA_INLINE folded fold4(f32x16 a, f32x16 b, f32x16 c, f32x16 d) {
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c.v, d.v, 0x44), _mm512_shuffle_f32x4(c.v, d.v, 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
PUNA_INLINE f32x16 fold_end(folded a, folded b, folded c, folded d) {
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_ps(c, d, 0x44), _mm512_shuffle_ps(c, d, 0xee));
  return {_mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x88), _mm512_shuffle_ps(ab, cd, 0xdd))};
}

#elif defined(PUNA_VARIANT_AVX2)

using folded = __m256;
constexpr int fold_member(int group, int i) { return 8 * (group / 2) + 2 * (group % 2) + 4 * (i % 2) + i / 2; }
PUNA_INLINE folded fold4(f32x16 a, f32x16 b, f32x16 c, f32x16 d) {
  const __m256 a8 = _mm256_add_ps(a.lo, a.hi), b8 = _mm256_add_ps(b.lo, b.hi);
  const __m256 c8 = _mm256_add_ps(c.lo, c.hi), d8 = _mm256_add_ps(d.lo, d.hi);
  const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
  const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c8, d8, 0x20), _mm256_permute2f128_ps(c8, d8, 0x31));
  return _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
}
PUNA_INLINE __m256 fold_pair(folded a, folded b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
PUNA_INLINE f32x16 fold_end(folded a, folded b, folded c, folded d) { return {fold_pair(a, b), fold_pair(c, d)}; }

#elif defined(PUNA_VARIANT_NEON)

using folded = float32x4_t;
constexpr int fold_member(int group, int i) { return 4 * group + i; }
PUNA_INLINE folded fold4(f32x16 a, f32x16 b, f32x16 c, f32x16 d) {
  const auto four = [](f32x16 v) { return vaddq_f32(vaddq_f32(v.q0, v.q2), vaddq_f32(v.q1, v.q3)); };
  const auto two = [](float32x4_t x, float32x4_t y) {
    return vaddq_f32(vcombine_f32(vget_low_f32(x), vget_low_f32(y)), vcombine_f32(vget_high_f32(x), vget_high_f32(y)));
  };
  return vpaddq_f32(two(four(a), four(b)), two(four(c), four(d)));
}
PUNA_INLINE f32x16 fold_end(folded a, folded b, folded c, folded d) { return {a, b, c, d}; }

#else

struct folded {
  float v[4];
};
constexpr int fold_member(int group, int i) { return 4 * group + i; }
PUNA_INLINE folded fold4(f32x16 a, f32x16 b, f32x16 c, f32x16 d) {
  return {reduce_add(a), reduce_add(b), reduce_add(c), reduce_add(d)};
}
PUNA_INLINE f32x16 fold_end(folded a, folded b, folded c, folded d) {
  f32x16 r;
  memcpy(r.v, a.v, sizeof a.v);
  memcpy(r.v + 4, b.v, sizeof b.v);
  memcpy(r.v + 8, c.v, sizeof c.v);
  memcpy(r.v + 12, d.v, sizeof d.v);
  return r;
}

#endif

}  // namespace puna::PUNA_NS
