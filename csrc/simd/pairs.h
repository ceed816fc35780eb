// The two lanes of each pair (0 and 1, 2 and 3 …) in each other's place.
#pragma once

#include "simd.h"

namespace puna::PUNA_NS {

#if defined(PUNA_VARIANT_AVX512) || defined(PUNA_VARIANT_AMX)
PUNA_INLINE f32x16 swap_pairs(f32x16 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
#elif defined(PUNA_VARIANT_AVX2)
PUNA_INLINE f32x16 swap_pairs(f32x16 a) { return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)}; }
#elif defined(PUNA_VARIANT_NEON)
PUNA_INLINE f32x16 swap_pairs(f32x16 a) {
  return {vrev64q_f32(a.q0), vrev64q_f32(a.q1), vrev64q_f32(a.q2), vrev64q_f32(a.q3)};
}
#else
PUNA_INLINE f32x16 swap_pairs(f32x16 a) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ 1];
  return r;
}
#endif

}  // namespace puna::PUNA_NS
