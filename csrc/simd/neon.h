// AArch64 with the dot product extension: sixteen lanes are four q registers.
#pragma once

#include <arm_neon.h>

namespace puna::PUNA_NS {

struct fvec {
  float32x4_t v;
};
struct ivec {
  int32x4_t v;
};
struct bvec {
  uint8x16_t v;
};
struct f32x16 {
  float32x4_t q0, q1, q2, q3;
};
struct i32x16 {
  int32x4_t q0, q1, q2, q3;
};

// An operation on each of the four registers.
#define PUNA_FOUR(EXPRESSION) {EXPRESSION(q0), EXPRESSION(q1), EXPRESSION(q2), EXPRESSION(q3)}

PUNA_INLINE f32x16 load(const float* p) {
  return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
PUNA_INLINE void store(float* p, f32x16 a) {
  vst1q_f32(p, a.q0);
  vst1q_f32(p + 4, a.q1);
  vst1q_f32(p + 8, a.q2);
  vst1q_f32(p + 12, a.q3);
}
PUNA_INLINE f32x16 load_n(const float* p, int n) {
  float lanes[16] = {};
  memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return load(lanes);
}
PUNA_INLINE void store_n(float* p, f32x16 a, int n) {
  float lanes[16];
  store(lanes, a);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}
PUNA_INLINE f32x16 set1(float x) {
  const float32x4_t four = vdupq_n_f32(x);
  return {four, four, four, four};
}
PUNA_INLINE f32x16 zero() { return set1(0.0f); }
#define PUNA_OP(q) vaddq_f32(a.q, b.q)
PUNA_INLINE f32x16 add(f32x16 a, f32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vsubq_f32(a.q, b.q)
PUNA_INLINE f32x16 sub(f32x16 a, f32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vmulq_f32(a.q, b.q)
PUNA_INLINE f32x16 mul(f32x16 a, f32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vdivq_f32(a.q, b.q)
PUNA_INLINE f32x16 div(f32x16 a, f32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vfmaq_f32(c.q, a.q, b.q)
PUNA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
// Not vmaxq: it returns NaN when either operand is NaN, x86 the second operand.
#define PUNA_OP(q) vbslq_f32(vcgtq_f32(a.q, b.q), a.q, b.q)
PUNA_INLINE f32x16 max(f32x16 a, f32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vbslq_f32(vcltq_f32(a.q, b.q), a.q, b.q)
PUNA_INLINE f32x16 min(f32x16 a, f32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vsqrtq_f32(a.q)
PUNA_INLINE f32x16 sqrt(f32x16 a) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vabsq_f32(a.q)
PUNA_INLINE f32x16 abs(f32x16 a) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vnegq_f32(a.q)
PUNA_INLINE f32x16 neg(f32x16 a) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
// a < b ? x : y in each lane (y where a or b is NaN).
#define PUNA_OP(q) vbslq_f32(vcltq_f32(a.q, b.q), x.q, y.q)
PUNA_INLINE f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP

PUNA_INLINE i32x16 set1_i32(int32_t x) {
  const int32x4_t four = vdupq_n_s32(x);
  return {four, four, four, four};
}
PUNA_INLINE i32x16 load_i32(const int32_t* p) {
  return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}
PUNA_INLINE void store_i32(int32_t* p, i32x16 a) {
  vst1q_s32(p, a.q0);
  vst1q_s32(p + 4, a.q1);
  vst1q_s32(p + 8, a.q2);
  vst1q_s32(p + 12, a.q3);
}
#define PUNA_OP(q) vaddq_s32(a.q, b.q)
PUNA_INLINE i32x16 add_i32(i32x16 a, i32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vsubq_s32(a.q, b.q)
PUNA_INLINE i32x16 sub_i32(i32x16 a, i32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vmaxq_s32(a.q, b.q)
PUNA_INLINE i32x16 max_i32(i32x16 a, i32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vandq_s32(a.q, b.q)
PUNA_INLINE i32x16 and_i32(i32x16 a, i32x16 b) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vshlq_n_s32(a.q, N)
template <int N>
PUNA_INLINE i32x16 shl_i32(i32x16 a) {
  return PUNA_FOUR(PUNA_OP);
}
#undef PUNA_OP
#define PUNA_OP(q) vshrq_n_s32(a.q, N)
template <int N>
PUNA_INLINE i32x16 sra_i32(i32x16 a) {
  return PUNA_FOUR(PUNA_OP);
}
#undef PUNA_OP
#define PUNA_OP(q) vreinterpretq_s32_f32(a.q)
PUNA_INLINE i32x16 as_i32(f32x16 a) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vreinterpretq_f32_s32(a.q)
PUNA_INLINE f32x16 as_f32(i32x16 a) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
#define PUNA_OP(q) vcvtq_f32_s32(a.q)
PUNA_INLINE f32x16 cvt_f32(i32x16 a) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
// Rounded to the nearest integer, ties to even; |a| < 2**22.
#define PUNA_OP(q) vcvtnq_s32_f32(a.q)
PUNA_INLINE i32x16 round_i32(f32x16 a) { return PUNA_FOUR(PUNA_OP); }
#undef PUNA_OP
// Lanes must lie in -128..127.
PUNA_INLINE void store_i8(int8_t* p, i32x16 a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.q0), vmovn_s32(a.q1));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.q2), vmovn_s32(a.q3));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
PUNA_INLINE i32x16 load_i8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
          vmovl_s16(vget_high_s16(high))};
}
PUNA_INLINE i32x16 load_u8(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
          vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))};
}

PUNA_INLINE float32x4_t four_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
PUNA_INLINE f32x16 load_f16(const uint16_t* p) {
  return {four_f16(p), four_f16(p + 4), four_f16(p + 8), four_f16(p + 12)};
}
PUNA_INLINE void store_f16(uint16_t* p, f32x16 a) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.q0)));
  vst1_u16(p + 4, vreinterpret_u16_f16(vcvt_f16_f32(a.q1)));
  vst1_u16(p + 8, vreinterpret_u16_f16(vcvt_f16_f32(a.q2)));
  vst1_u16(p + 12, vreinterpret_u16_f16(vcvt_f16_f32(a.q3)));
}
PUNA_INLINE float32x4_t four_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
PUNA_INLINE f32x16 load_bf16(const uint16_t* p) {
  return {four_bf16(p), four_bf16(p + 4), four_bf16(p + 8), four_bf16(p + 12)};
}
// Nearest even, in integers; NaN is made quiet.
PUNA_INLINE void store_four_bf16(uint16_t* p, float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16));
}
PUNA_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  store_four_bf16(p, a.q0);
  store_four_bf16(p + 4, a.q1);
  store_four_bf16(p + 8, a.q2);
  store_four_bf16(p + 12, a.q3);
}

PUNA_INLINE float reduce_add(f32x16 a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.q0, a.q2), vaddq_f32(a.q1, a.q3));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
PUNA_INLINE float reduce_max(f32x16 a) {
  float lanes[16];
  store(lanes, a);
  for (int step = 8; step >= 1; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
  }
  return lanes[0];
}
PUNA_INLINE int32_t reduce_max_i32(i32x16 a) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.q0, a.q1), vmaxq_s32(a.q2, a.q3)));
}
PUNA_INLINE int32_t reduce_add_i32(i32x16 a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.q0, a.q1), vaddq_s32(a.q2, a.q3)));
}

// ---- native vectors -------------------------------------------------------------------------------------------

// How far loops over the operands of a tile are unrolled.
inline constexpr int kUnroll = 8;
// Rows of the largest float32 tile, and how many times sixteen outputs.
inline constexpr int kFloatRows = 6;
inline constexpr int kFloatPanels = 1;
inline constexpr int kNativeRows = 4;
inline constexpr bool kSumsInPairs = false;  // the sums of quant/a8.h
inline constexpr bool kPanelPairs = false;   // of weights, multiplied together
inline constexpr int kParts = 4;
PUNA_INLINE fvec part(f32x16 a, int i) { return {i == 0 ? a.q0 : i == 1 ? a.q1 : i == 2 ? a.q2 : a.q3}; }
PUNA_INLINE fvec nload(const float* p) { return {vld1q_f32(p)}; }
PUNA_INLINE void nstore(float* p, fvec a) { vst1q_f32(p, a.v); }
PUNA_INLINE fvec nset1(float x) { return {vdupq_n_f32(x)}; }
PUNA_INLINE ivec nadd(ivec a, ivec b) { return {vaddq_s32(a.v, b.v)}; }
PUNA_INLINE fvec nload_f16(const uint16_t* p) { return {four_f16(p)}; }
PUNA_INLINE uint8x8_t four_bytes(const uint8_t* p) {
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return vcreate_u8(word);
}
PUNA_INLINE fvec nload_u8(const uint8_t* p) {
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p)))))};
}
PUNA_INLINE fvec nload_i8(const int8_t* p) {
  const int8x8_t bytes = vreinterpret_s8_u8(four_bytes(reinterpret_cast<const uint8_t*>(p)));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))};
}
PUNA_INLINE fvec add(fvec a, fvec b) { return {vaddq_f32(a.v, b.v)}; }
PUNA_INLINE fvec mul(fvec a, fvec b) { return {vmulq_f32(a.v, b.v)}; }
PUNA_INLINE fvec fma(fvec a, fvec b, fvec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
PUNA_INLINE fvec neg(fvec a) { return {vnegq_f32(a.v)}; }
PUNA_INLINE fvec cvt_f32(ivec a) { return {vcvtq_f32_s32(a.v)}; }
// Two bfloat16 in each 32-bit lane: the even (low half) and the odd one as floats.
PUNA_INLINE fvec even_bf16(bvec a) { return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(a.v), 16))}; }
PUNA_INLINE fvec odd_bf16(bvec a) {
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(a.v), vdupq_n_u32(0xffff0000u)))};
}

PUNA_INLINE bvec bload(const uint8_t* p) { return {vld1q_u8(p)}; }
PUNA_INLINE bvec bset1(uint8_t x) { return {vdupq_n_u8(x)}; }
PUNA_INLINE bvec band(bvec a, bvec b) { return {vandq_u8(a.v, b.v)}; }
PUNA_INLINE bvec bor(bvec a, bvec b) { return {vorrq_u8(a.v, b.v)}; }
PUNA_INLINE bvec bxor(bvec a, bvec b) { return {veorq_u8(a.v, b.v)}; }
// Shifts of wide lanes: mask what crosses the byte border. A negative count shifts left.
template <int N>
PUNA_INLINE bvec bshr(bvec a) {
  const uint16x8_t words = vreinterpretq_u16_u8(a.v);
  if constexpr (N > 0) return {vreinterpretq_u8_u16(vshrq_n_u16(words, N))};
  else return {vreinterpretq_u8_u16(vshlq_n_u16(words, -N))};
}
// table[index] for sixteen-entry tables; indices below 16.
PUNA_INLINE bvec blookup(const uint8_t* table, bvec index) { return {vqtbl1q_u8(vld1q_u8(table), index.v)}; }
// Tells the compiler that a value must be in a register here: gcc otherwise moves and re-associates across it.
PUNA_INLINE void pin(ivec& a) { __asm__("" : "+w"(a.v)); }
PUNA_INLINE void pin(fvec& a) { __asm__("" : "+w"(a.v)); }

// Integer products, for csrc/ops/dot_direct.h: the zero point is taken out of the codes, which then are signed.
template <int Zero, bool Signed>
PUNA_INLINE bvec operand(bvec codes) {
  if constexpr (Zero == 0) return codes;
  else return {vsubq_u8(codes.v, vdupq_n_u8(Zero))};
}
template <int Zero, bool Signed>
PUNA_INLINE ivec start(const uint8_t*) {
  return {vdupq_n_s32(0)};
}
// acc + the products of four codes and four activations in each lane.
PUNA_INLINE ivec dot4(ivec acc, bvec codes, const uint8_t* activations) {
  int32_t x;
  memcpy(&x, activations, sizeof x);
  return {vdotq_s32(acc.v, vreinterpretq_s8_u8(codes.v), vreinterpretq_s8_s32(vdupq_n_s32(x)))};
}

// No software prefetch of the weight stream (not measured).
inline constexpr int kPrefetchBytes = 0;
inline constexpr int kPrefetchRows = 0;

#undef PUNA_FOUR

}  // namespace puna::PUNA_NS
