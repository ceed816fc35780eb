// AVX-512 (F, BW, DQ, VL, VNNI): sixteen lanes are one zmm register.
#pragma once

// gcc 12 takes the deliberately undefined sources in these headers for mistakes (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace puna::PUNA_NS {

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};

PUNA_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
PUNA_INLINE void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
PUNA_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
PUNA_INLINE f32x16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
PUNA_INLINE void store_n(float* p, f32x16 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
PUNA_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
PUNA_INLINE f32x16 zero() { return {_mm512_setzero_ps()}; }
PUNA_INLINE f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
PUNA_INLINE f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
PUNA_INLINE f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
PUNA_INLINE f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
PUNA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
PUNA_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
PUNA_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
PUNA_INLINE f32x16 sqrt(f32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
PUNA_INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
PUNA_INLINE f32x16 neg(f32x16 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
// a < b ? x : y in each lane (y where a or b is NaN).
PUNA_INLINE f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}

PUNA_INLINE i32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
PUNA_INLINE i32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
PUNA_INLINE void store_i32(int32_t* p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
PUNA_INLINE i32x16 add_i32(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
PUNA_INLINE i32x16 sub_i32(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
PUNA_INLINE i32x16 max_i32(i32x16 a, i32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
PUNA_INLINE i32x16 and_i32(i32x16 a, i32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int N>
PUNA_INLINE i32x16 shl_i32(i32x16 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N>
PUNA_INLINE i32x16 sra_i32(i32x16 a) { return {_mm512_srai_epi32(a.v, N)}; }
PUNA_INLINE i32x16 as_i32(f32x16 a) { return {_mm512_castps_si512(a.v)}; }
PUNA_INLINE f32x16 as_f32(i32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
PUNA_INLINE f32x16 cvt_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Rounded to the nearest integer, ties to even; |a| < 2**22.
PUNA_INLINE i32x16 round_i32(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
// Lanes must lie in -128..127.
PUNA_INLINE void store_i8(int8_t* p, i32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
PUNA_INLINE i32x16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
PUNA_INLINE i32x16 load_u8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

PUNA_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
PUNA_INLINE void store_f16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PUNA_INLINE f32x16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// In integers, so that subnormals survive the flushing mode of the workers (vcvtneps2bf16 would drop them).
PUNA_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i high = _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, rounded, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}

PUNA_INLINE __m256 low_half(__m512 a) { return _mm512_castps512_ps256(a); }
PUNA_INLINE __m256 high_half(__m512 a) { return _mm512_extractf32x8_ps(a, 1); }
PUNA_INLINE float reduce_add(f32x16 a) {
  const __m256 eight = _mm256_add_ps(low_half(a.v), high_half(a.v));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
PUNA_INLINE float reduce_max(f32x16 a) {
  const __m256 eight = _mm256_max_ps(low_half(a.v), high_half(a.v));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
PUNA_INLINE int32_t reduce_max_i32(i32x16 a) { return _mm512_reduce_max_epi32(a.v); }
PUNA_INLINE int32_t reduce_add_i32(i32x16 a) { return _mm512_reduce_add_epi32(a.v); }

// ---- native vectors -------------------------------------------------------------------------------------------

using fvec = f32x16;
using ivec = i32x16;
struct bvec {
  __m512i v;
};
// How far loops over the operands of a tile are unrolled.
inline constexpr int kUnroll = 8;
// Rows of the largest float32 tile, and how many times sixteen outputs.
inline constexpr int kFloatRows = 8;
inline constexpr int kFloatPanels = 2;
inline constexpr int kNativeRows = 16;
inline constexpr bool kSumsInPairs = false;  // the sums of quant/a8.h
inline constexpr bool kPanelPairs = true;   // of weights, multiplied together
inline constexpr int kParts = 1;
// Some of these processors have vdpbf16ps (AVX512_BF16): MatmulArgs::has_bf16_dot.
#define PUNA_HAS_BF16_DOT
PUNA_INLINE fvec part(f32x16 a, int) { return a; }
PUNA_INLINE fvec nload(const float* p) { return load(p); }
PUNA_INLINE void nstore(float* p, fvec a) { store(p, a); }
PUNA_INLINE fvec nset1(float x) { return set1(x); }
PUNA_INLINE ivec nadd(ivec a, ivec b) { return {_mm512_add_epi32(a.v, b.v)}; }
PUNA_INLINE fvec nload_f16(const uint16_t* p) { return load_f16(p); }
PUNA_INLINE fvec nload_u8(const uint8_t* p) { return cvt_f32(load_u8(p)); }
PUNA_INLINE fvec nload_i8(const int8_t* p) { return cvt_f32(load_i8(p)); }
// Two bfloat16 in each 32-bit lane: the even (low half) and the odd one as floats.
PUNA_INLINE fvec even_bf16(bvec a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
PUNA_INLINE fvec odd_bf16(bvec a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(-65536)))};
}

PUNA_INLINE bvec bload(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
PUNA_INLINE bvec bset1(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
PUNA_INLINE bvec band(bvec a, bvec b) { return {_mm512_and_si512(a.v, b.v)}; }
PUNA_INLINE bvec bor(bvec a, bvec b) { return {_mm512_or_si512(a.v, b.v)}; }
PUNA_INLINE bvec bxor(bvec a, bvec b) { return {_mm512_xor_si512(a.v, b.v)}; }
// Shifts of 16-bit lanes: mask what crosses the byte border. A negative count shifts left.
template <int N>
PUNA_INLINE bvec bshr(bvec a) {
  if constexpr (N >= 0) return {_mm512_srli_epi16(a.v, static_cast<unsigned>(N))};
  else return {_mm512_slli_epi16(a.v, static_cast<unsigned>(-N))};
}
// table[index] for sixteen-entry tables; indices below 16.
PUNA_INLINE bvec blookup(const uint8_t* table, bvec index) {
  const __m512i wide = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(wide, index.v)};
}
// Tells the compiler that a value must be in a register here: gcc otherwise moves and re-associates across it.
PUNA_INLINE void pin(ivec& a) { __asm__("" : "+v"(a.v)); }
PUNA_INLINE void pin(fvec& a) { __asm__("" : "+v"(a.v)); }

// Integer products, for csrc/ops/dot_direct.h. vpdpbusd takes its first factor unsigned: signed codes are shifted by
// 128, and a sum starts at minus the zero point times the sum of the activations.
template <int Zero, bool Signed>
PUNA_INLINE bvec operand(bvec codes) {
  if constexpr (Signed) return bxor(codes, bset1(0x80));
  else return codes;
}
// `minus8`: -8 times the sum of the activations.
template <int Zero, bool Signed>
PUNA_INLINE ivec start(const uint8_t* minus8) {
  constexpr int zero_point = Signed ? 128 : Zero;
  if constexpr (zero_point == 0) return {_mm512_setzero_si512()};
  int32_t x;
  memcpy(&x, minus8, sizeof x);
  constexpr int shift = __builtin_ctz(zero_point | 256) - 3;
  if constexpr (shift < 0) return {_mm512_srai_epi32(_mm512_set1_epi32(x), -shift)};
  else return {_mm512_slli_epi32(_mm512_set1_epi32(x), shift)};
}
// acc + the products of four codes and four activations in each lane.
PUNA_INLINE ivec dot4(ivec acc, bvec codes, const uint8_t* activations) {
  int32_t x;
  memcpy(&x, activations, sizeof x);
  return {_mm512_dpbusd_epi32(acc.v, codes.v, _mm512_set1_epi32(x))};
}

// Software prefetch of the weight stream, this far ahead, in tiles of at least so many rows. The hardware's alone
// leaves the memory waiting while several rows are multiplied (half the speed at 8), and costs a fifth at one row on
// Intel.
inline constexpr int kPrefetchBytes = 4096;
inline constexpr int kPrefetchRows = 1;

}  // namespace puna::PUNA_NS
