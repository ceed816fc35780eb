// Portable C++: sixteen lanes are an array. The reference the other variants are compared with.
#pragma once

#include "half.h"

namespace puna::PUNA_NS {

struct f32x16 {
  float v[16];
};
struct i32x16 {
  int32_t v[16];
};

#define PUNA_LANES(result, expression) \
  result r;                            \
  for (int i = 0; i < 16; ++i) r.v[i] = expression; \
  return r

PUNA_INLINE f32x16 load(const float* p) { PUNA_LANES(f32x16, p[i]); }
PUNA_INLINE void store(float* p, f32x16 a) { memcpy(p, a.v, sizeof a.v); }
PUNA_INLINE f32x16 load_n(const float* p, int n) { PUNA_LANES(f32x16, i < n ? p[i] : 0.0f); }
PUNA_INLINE void store_n(float* p, f32x16 a, int n) { memcpy(p, a.v, static_cast<size_t>(n) * sizeof(float)); }
PUNA_INLINE f32x16 set1(float x) { PUNA_LANES(f32x16, x); }
PUNA_INLINE f32x16 zero() { PUNA_LANES(f32x16, 0.0f); }
PUNA_INLINE f32x16 add(f32x16 a, f32x16 b) { PUNA_LANES(f32x16, a.v[i] + b.v[i]); }
PUNA_INLINE f32x16 sub(f32x16 a, f32x16 b) { PUNA_LANES(f32x16, a.v[i] - b.v[i]); }
PUNA_INLINE f32x16 mul(f32x16 a, f32x16 b) { PUNA_LANES(f32x16, a.v[i] * b.v[i]); }
PUNA_INLINE f32x16 div(f32x16 a, f32x16 b) { PUNA_LANES(f32x16, a.v[i] / b.v[i]); }
PUNA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { PUNA_LANES(f32x16, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
PUNA_INLINE f32x16 max(f32x16 a, f32x16 b) { PUNA_LANES(f32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
PUNA_INLINE f32x16 min(f32x16 a, f32x16 b) { PUNA_LANES(f32x16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
PUNA_INLINE f32x16 sqrt(f32x16 a) { PUNA_LANES(f32x16, __builtin_sqrtf(a.v[i])); }
PUNA_INLINE f32x16 abs(f32x16 a) { PUNA_LANES(f32x16, float_of(bits_of(a.v[i]) & 0x7fffffffu)); }
PUNA_INLINE f32x16 neg(f32x16 a) { PUNA_LANES(f32x16, float_of(bits_of(a.v[i]) ^ 0x80000000u)); }
// a < b ? x : y in each lane (y where a or b is NaN).
PUNA_INLINE f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  PUNA_LANES(f32x16, a.v[i] < b.v[i] ? x.v[i] : y.v[i]);
}

PUNA_INLINE i32x16 set1_i32(int32_t x) { PUNA_LANES(i32x16, x); }
PUNA_INLINE i32x16 load_i32(const int32_t* p) { PUNA_LANES(i32x16, p[i]); }
PUNA_INLINE void store_i32(int32_t* p, i32x16 a) { memcpy(p, a.v, sizeof a.v); }
PUNA_INLINE int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
PUNA_INLINE uint32_t word(int32_t x) { return static_cast<uint32_t>(x); }
PUNA_INLINE i32x16 add_i32(i32x16 a, i32x16 b) { PUNA_LANES(i32x16, wrap(word(a.v[i]) + word(b.v[i]))); }
PUNA_INLINE i32x16 sub_i32(i32x16 a, i32x16 b) { PUNA_LANES(i32x16, wrap(word(a.v[i]) - word(b.v[i]))); }
PUNA_INLINE i32x16 max_i32(i32x16 a, i32x16 b) { PUNA_LANES(i32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
PUNA_INLINE i32x16 and_i32(i32x16 a, i32x16 b) { PUNA_LANES(i32x16, a.v[i] & b.v[i]); }
template <int N>
PUNA_INLINE i32x16 shl_i32(i32x16 a) {
  PUNA_LANES(i32x16, wrap(word(a.v[i]) << N));
}
template <int N>
PUNA_INLINE i32x16 sra_i32(i32x16 a) {
  PUNA_LANES(i32x16, a.v[i] >> N);
}
PUNA_INLINE i32x16 as_i32(f32x16 a) { PUNA_LANES(i32x16, wrap(bits_of(a.v[i]))); }
PUNA_INLINE f32x16 as_f32(i32x16 a) { PUNA_LANES(f32x16, float_of(word(a.v[i]))); }
PUNA_INLINE f32x16 cvt_f32(i32x16 a) { PUNA_LANES(f32x16, static_cast<float>(a.v[i])); }
// Rounded to the nearest integer, ties to even; |a| < 2**22.
PUNA_INLINE i32x16 round_i32(f32x16 a) {
  PUNA_LANES(i32x16, static_cast<int32_t>((a.v[i] + 12582912.0f) - 12582912.0f));
}
// Lanes must lie in -128..127.
PUNA_INLINE void store_i8(int8_t* p, i32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
PUNA_INLINE i32x16 load_i8(const int8_t* p) { PUNA_LANES(i32x16, p[i]); }
PUNA_INLINE i32x16 load_u8(const uint8_t* p) { PUNA_LANES(i32x16, p[i]); }

PUNA_INLINE f32x16 load_f16(const uint16_t* p) { PUNA_LANES(f32x16, half_to_float(p[i])); }
PUNA_INLINE f32x16 load_bf16(const uint16_t* p) { PUNA_LANES(f32x16, bf16_to_float(p[i])); }
PUNA_INLINE void store_f16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
}
PUNA_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_bf16(a.v[i]);
}

PUNA_INLINE float reduce_add(f32x16 a) {
  for (int step = 8; step >= 1; step /= 2) {
    for (int i = 0; i < step; ++i) a.v[i] = a.v[i] + a.v[i + step];
  }
  return a.v[0];
}
PUNA_INLINE float reduce_max(f32x16 a) {
  for (int step = 8; step >= 1; step /= 2) {
    for (int i = 0; i < step; ++i) a.v[i] = a.v[i] > a.v[i + step] ? a.v[i] : a.v[i + step];
  }
  return a.v[0];
}
PUNA_INLINE int32_t reduce_max_i32(i32x16 a) {
  int32_t best = a.v[0];
  for (int i = 1; i < 16; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}
PUNA_INLINE int32_t reduce_add_i32(i32x16 a) {
  uint32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += word(a.v[i]);
  return wrap(sum);
}

// ---- native vectors -------------------------------------------------------------------------------------------

using fvec = f32x16;
using ivec = i32x16;
struct bvec {
  uint64_t v[8];
};
// How far loops over the operands of a tile are unrolled: not at all, for the compiler's sake.
inline constexpr int kUnroll = 1;
// Rows of the largest float32 tile, and how many times sixteen outputs.
inline constexpr int kFloatRows = 4;
inline constexpr int kFloatPanels = 1;
inline constexpr int kNativeRows = 16;
inline constexpr bool kSumsInPairs = false;  // the sums of quant/a8.h
inline constexpr bool kPanelPairs = false;   // of weights, multiplied together
inline constexpr int kParts = 1;
PUNA_INLINE fvec part(f32x16 a, int) { return a; }
PUNA_INLINE fvec nload(const float* p) { return load(p); }
PUNA_INLINE void nstore(float* p, fvec a) { store(p, a); }
PUNA_INLINE fvec nset1(float x) { return set1(x); }
PUNA_INLINE ivec nadd(ivec a, ivec b) { return add_i32(a, b); }
PUNA_INLINE fvec nload_f16(const uint16_t* p) { return load_f16(p); }
PUNA_INLINE fvec nload_u8(const uint8_t* p) { return cvt_f32(load_u8(p)); }
PUNA_INLINE fvec nload_i8(const int8_t* p) { return cvt_f32(load_i8(p)); }

#define PUNA_WORDS(expression) \
  bvec r;                      \
  for (int i = 0; i < 8; ++i) r.v[i] = expression; \
  return r

PUNA_INLINE bvec bload(const uint8_t* p) {
  bvec r;
  memcpy(r.v, p, sizeof r.v);
  return r;
}
PUNA_INLINE bvec bset1(uint8_t x) { PUNA_WORDS(x * 0x0101010101010101u); }
PUNA_INLINE bvec band(bvec a, bvec b) { PUNA_WORDS(a.v[i] & b.v[i]); }
PUNA_INLINE bvec bor(bvec a, bvec b) { PUNA_WORDS(a.v[i] | b.v[i]); }
PUNA_INLINE bvec bxor(bvec a, bvec b) { PUNA_WORDS(a.v[i] ^ b.v[i]); }
// Shifts of wide lanes: mask what crosses the byte border. A negative count shifts left.
template <int N>
PUNA_INLINE bvec bshr(bvec a) {
  if constexpr (N >= 0) {
    PUNA_WORDS(a.v[i] >> N);
  } else {
    PUNA_WORDS(a.v[i] << -N);
  }
}
// table[index] for sixteen-entry tables; indices below 16.
PUNA_INLINE bvec blookup(const uint8_t* table, bvec index) {
  uint8_t bytes[64];
  memcpy(bytes, index.v, sizeof bytes);
  for (int i = 0; i < 64; ++i) bytes[i] = table[bytes[i]];
  return bload(bytes);
}
// Two bfloat16 in each 32-bit lane: the even (low half) and the odd one as floats.
PUNA_INLINE fvec even_bf16(bvec a) {
  uint32_t lanes[16];
  memcpy(lanes, a.v, sizeof lanes);
  PUNA_LANES(fvec, float_of(lanes[i] << 16));
}
PUNA_INLINE fvec odd_bf16(bvec a) {
  uint32_t lanes[16];
  memcpy(lanes, a.v, sizeof lanes);
  PUNA_LANES(fvec, float_of(lanes[i] & 0xffff0000u));
}
PUNA_INLINE void pin(ivec&) {}
PUNA_INLINE void pin(fvec&) {}

// Integer products, for csrc/ops/dot_direct.h: the zero point is taken out of the codes, which then are signed.
template <int Zero, bool Signed>
PUNA_INLINE bvec operand(bvec codes) {
  uint8_t bytes[64];
  memcpy(bytes, codes.v, sizeof bytes);
  for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(bytes[i] - Zero);
  return bload(bytes);
}
template <int Zero, bool Signed>
PUNA_INLINE ivec start(const uint8_t*) {
  return set1_i32(0);
}
// acc + the products of four codes and four activations in each lane.
PUNA_INLINE ivec dot4(ivec acc, bvec codes, const uint8_t* activations) {
  int8_t w[64], a[4];
  memcpy(w, codes.v, sizeof w);
  memcpy(a, activations, sizeof a);
  for (int i = 0; i < 16; ++i) {
    acc.v[i] += w[4 * i] * a[0] + w[4 * i + 1] * a[1] + w[4 * i + 2] * a[2] + w[4 * i + 3] * a[3];
  }
  return acc;
}

// No software prefetch of the weight stream.
inline constexpr int kPrefetchBytes = 0;
inline constexpr int kPrefetchRows = 0;

#undef PUNA_LANES
#undef PUNA_WORDS

}  // namespace puna::PUNA_NS
