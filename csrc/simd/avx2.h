// AVX2 with FMA and F16C: sixteen lanes are two ymm registers, lanes 0-7 and 8-15.
#pragma once

#include <immintrin.h>

namespace puna::PUNA_NS {

struct fvec {
  __m256 v;
};
struct ivec {
  __m256i v;
};
struct bvec {
  __m256i v;
};
struct f32x16 {
  __m256 lo, hi;
};
struct i32x16 {
  __m256i lo, hi;
};

PUNA_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
PUNA_INLINE void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
// All ones in the first n (clamped to 0..8) lanes.
PUNA_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
PUNA_INLINE f32x16 load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
PUNA_INLINE void store_n(float* p, f32x16 a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}
PUNA_INLINE f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PUNA_INLINE f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
PUNA_INLINE f32x16 add(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
PUNA_INLINE f32x16 sub(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
PUNA_INLINE f32x16 mul(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
PUNA_INLINE f32x16 div(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
PUNA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
PUNA_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
PUNA_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
PUNA_INLINE f32x16 sqrt(f32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
PUNA_INLINE f32x16 abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
PUNA_INLINE f32x16 neg(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi)};
}
// a < b ? x : y in each lane (y where a or b is NaN).
PUNA_INLINE f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}

PUNA_INLINE __m256i load_m256i(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
PUNA_INLINE void store_m256i(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
PUNA_INLINE __m128i load_m128i(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
PUNA_INLINE __m128i load_m64i(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
PUNA_INLINE void store_m128i(void* p, __m128i a) { _mm_storeu_si128(static_cast<__m128i*>(p), a); }

PUNA_INLINE i32x16 set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
PUNA_INLINE i32x16 load_i32(const int32_t* p) { return {load_m256i(p), load_m256i(p + 8)}; }
PUNA_INLINE void store_i32(int32_t* p, i32x16 a) {
  store_m256i(p, a.lo);
  store_m256i(p + 8, a.hi);
}
PUNA_INLINE i32x16 add_i32(i32x16 a, i32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
PUNA_INLINE i32x16 sub_i32(i32x16 a, i32x16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
PUNA_INLINE i32x16 max_i32(i32x16 a, i32x16 b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
PUNA_INLINE i32x16 and_i32(i32x16 a, i32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
template <int N>
PUNA_INLINE i32x16 shl_i32(i32x16 a) {
  return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)};
}
template <int N>
PUNA_INLINE i32x16 sra_i32(i32x16 a) {
  return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)};
}
PUNA_INLINE i32x16 as_i32(f32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
PUNA_INLINE f32x16 as_f32(i32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
PUNA_INLINE f32x16 cvt_f32(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// Rounded to the nearest integer, ties to even; |a| < 2**22.
PUNA_INLINE i32x16 round_i32(f32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
// Lanes must lie in -128..127.
PUNA_INLINE void store_i8(int8_t* p, i32x16 a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xD8);
  store_m128i(p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
PUNA_INLINE i32x16 load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(load_m64i(p)), _mm256_cvtepi8_epi32(load_m64i(p + 8))};
}
PUNA_INLINE i32x16 load_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(load_m64i(p)), _mm256_cvtepu8_epi32(load_m64i(p + 8))};
}

PUNA_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_m128i(p)), _mm256_cvtph_ps(load_m128i(p + 8))};
}
PUNA_INLINE void store_f16(uint16_t* p, f32x16 a) {
  store_m128i(p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  store_m128i(p + 8, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PUNA_INLINE f32x16 load_bf16(const uint16_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_m128i(p)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_m128i(p + 8)), 16))};
}
// The upper halves of eight floats rounded to nearest even, in 32-bit lanes; NaN is made quiet.
PUNA_INLINE __m256i round_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}
PUNA_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  store_m256i(p, _mm256_permute4x64_epi64(_mm256_packus_epi32(round_bf16(a.lo), round_bf16(a.hi)), 0xD8));
}

PUNA_INLINE float reduce_add(f32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
PUNA_INLINE float reduce_max(f32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
PUNA_INLINE int32_t reduce_max_i32(i32x16 a) {
  const __m256i eight = _mm256_max_epi32(a.lo, a.hi);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}
PUNA_INLINE int32_t reduce_add_i32(i32x16 a) {
  const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

// ---- native vectors -------------------------------------------------------------------------------------------

// How far loops over the operands of a tile are unrolled.
inline constexpr int kUnroll = 8;
// Rows of the largest float32 tile, and how many times sixteen outputs.
inline constexpr int kFloatRows = 6;
inline constexpr int kFloatPanels = 1;
inline constexpr int kNativeRows = 8;
inline constexpr bool kSumsInPairs = true;  // the sums of quant/a8.h
inline constexpr int kParts = 2;
PUNA_INLINE fvec part(f32x16 a, int i) { return {i == 0 ? a.lo : a.hi}; }
PUNA_INLINE fvec nload(const float* p) { return {_mm256_loadu_ps(p)}; }
PUNA_INLINE void nstore(float* p, fvec a) { _mm256_storeu_ps(p, a.v); }
PUNA_INLINE fvec nset1(float x) { return {_mm256_set1_ps(x)}; }
PUNA_INLINE ivec nadd(ivec a, ivec b) { return {_mm256_add_epi32(a.v, b.v)}; }
PUNA_INLINE fvec nload_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load_m128i(p))}; }
PUNA_INLINE fvec nload_u8(const uint8_t* p) { return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_m64i(p)))}; }
PUNA_INLINE fvec nload_i8(const int8_t* p) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_m64i(p)))}; }
PUNA_INLINE fvec add(fvec a, fvec b) { return {_mm256_add_ps(a.v, b.v)}; }
PUNA_INLINE fvec mul(fvec a, fvec b) { return {_mm256_mul_ps(a.v, b.v)}; }
PUNA_INLINE fvec fma(fvec a, fvec b, fvec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
PUNA_INLINE fvec neg(fvec a) { return {_mm256_xor_ps(_mm256_set1_ps(-0.0f), a.v)}; }
PUNA_INLINE fvec cvt_f32(ivec a) { return {_mm256_cvtepi32_ps(a.v)}; }
// Two bfloat16 in each 32-bit lane: the even (low half) and the odd one as floats.
PUNA_INLINE fvec even_bf16(bvec a) { return {_mm256_castsi256_ps(_mm256_slli_epi32(a.v, 16))}; }
PUNA_INLINE fvec odd_bf16(bvec a) {
  // The mask stays in memory: in a register it would cost the float32 tile its last one.
  alignas(32) static constexpr uint32_t kOdd[8] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                   0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
  __m256i odd;
  __asm__("vpand %2, %1, %0" : "=x"(odd) : "x"(a.v), "m"(kOdd));
  return {_mm256_castsi256_ps(odd)};
}

PUNA_INLINE bvec bload(const uint8_t* p) { return {load_m256i(p)}; }
PUNA_INLINE bvec bset1(uint8_t x) { return {_mm256_set1_epi8(static_cast<char>(x))}; }
PUNA_INLINE bvec band(bvec a, bvec b) { return {_mm256_and_si256(a.v, b.v)}; }
PUNA_INLINE bvec bor(bvec a, bvec b) { return {_mm256_or_si256(a.v, b.v)}; }
PUNA_INLINE bvec bxor(bvec a, bvec b) { return {_mm256_xor_si256(a.v, b.v)}; }
// Shifts of 16-bit lanes: mask what crosses the byte border. A negative count shifts left.
template <int N>
PUNA_INLINE bvec bshr(bvec a) {
  if constexpr (N >= 0) return {_mm256_srli_epi16(a.v, N)};
  else return {_mm256_slli_epi16(a.v, -N)};
}
// table[index] for sixteen-entry tables; indices below 16.
PUNA_INLINE bvec blookup(const uint8_t* table, bvec index) {
  return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_m128i(table)), index.v)};
}
// Tells the compiler that a value must be in a register here: gcc otherwise moves and re-associates across it.
PUNA_INLINE void pin(ivec& a) { __asm__("" : "+x"(a.v)); }
PUNA_INLINE void pin(fvec& a) { __asm__("" : "+x"(a.v)); }

// Software prefetch of the weight stream, this far ahead, in tiles of at least so many rows. With one row the hardware's
// is enough, and another costs 8-20 %; with two it gains a tenth (Zen 4), half and double the distance nothing.
inline constexpr int kPrefetchBytes = 4096;
inline constexpr int kPrefetchRows = 2;

}  // namespace puna::PUNA_NS
