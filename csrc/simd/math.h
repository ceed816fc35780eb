// Functions of the vocabulary that are written once, on the operations of the variant's own header.
#pragma once

namespace puna::PUNA_NS {

// e**x, within 1 ulp of the exact value (0.99 measured over every float32).
//
// x = n·ln2 + r with |r| <= ln2/2, e**r = 1 + r + r²·P(r) with a degree 5 minimax P, times 2**n in two exact steps.
// Below ln(2**-126) the result is 0, whether or not subnormals are flushed; above ln(FLT_MAX) it is infinity; NaN
// stays NaN.
struct ExpParts {
  f32x16 power;       // e**r
  i32x16 exponent;    // n
};
PUNA_INLINE ExpParts exp_parts(f32x16 clamped) {
  // Adding 1.5·2**23 leaves round-to-nearest-even(x/ln2) in the low bits of the sum.
  const f32x16 magic = set1(12582912.0f);
  const f32x16 sum = fma(clamped, set1(1.44269504f), magic);
  const f32x16 n = sub(sum, magic);
  f32x16 r = fma(n, set1(-0x1.62e4p-1f), clamped);
  r = fma(n, set1(-0x1.7f7d1cp-20f), r);
  f32x16 p = set1(0x1.9f085cp-13f);
  p = fma(p, r, set1(0x1.6d8d52p-10f));
  p = fma(p, r, set1(0x1.111272p-7f));
  p = fma(p, r, set1(0x1.55548ep-5f));
  p = fma(p, r, set1(0x1.555554p-3f));
  p = fma(p, r, set1(0.5f));
  p = fma(mul(r, r), p, r);
  return {add(p, set1(1.0f)), sub_i32(as_i32(sum), as_i32(magic))};
}
PUNA_INLINE f32x16 power_of_two(i32x16 exponent) { return as_f32(shl_i32<23>(add_i32(exponent, set1_i32(127)))); }
inline constexpr float kSmallestExponent = -87.33654f;

PUNA_INLINE f32x16 exp(f32x16 x) {
  const ExpParts parts = exp_parts(min(set1(89.0f), max(set1(-88.0f), x)));
  const i32x16 half = sra_i32<1>(parts.exponent);
  const f32x16 low = power_of_two(half), high = power_of_two(sub_i32(parts.exponent, half));
  return select_lt(x, set1(kSmallestExponent), zero(), mul(mul(parts.power, low), high));
}
// The same for x that are not above zero, for which one step is exact.
PUNA_INLINE f32x16 exp_of_negative(f32x16 x) {
  const ExpParts parts = exp_parts(max(set1(-88.0f), x));
  return select_lt(x, set1(kSmallestExponent), zero(), mul(parts.power, power_of_two(parts.exponent)));
}

// tanh(x), within 1.5 ulp. Near 0 an odd polynomial, x + x³·P(x²) with a degree 4 fit P; elsewhere 1 - 2 / (e**2|x| + 1)
// with the sign of x. NaN stays NaN.
PUNA_INLINE f32x16 tanh(f32x16 x) {
  const f32x16 size = abs(x), square = mul(x, x);
  f32x16 p = set1(-0x1.901840p-8f);
  p = fma(p, square, set1(0x1.581fb4p-6f));
  p = fma(p, square, set1(-0x1.b928e2p-5f));
  p = fma(p, square, set1(0x1.110e2ep-3f));
  p = fma(p, square, set1(-0x1.555552p-2f));
  const f32x16 near = fma(mul(x, square), p, x);
  const f32x16 one = set1(1.0f);
  const f32x16 far = sub(one, div(set1(2.0f), add(exp(add(size, size)), one)));
  return select_lt(size, set1(0.625f), near, select_lt(x, zero(), neg(far), far));
}

// The first n <= 16 halves or bfloat16 at p as floats, the other lanes 0.
PUNA_INLINE f32x16 load_f16_n(const uint16_t* p, int n) {
  uint16_t lanes[16] = {};
  memcpy(lanes, p, static_cast<size_t>(n) * 2);
  return load_f16(lanes);
}
PUNA_INLINE f32x16 load_bf16_n(const uint16_t* p, int n) {
  uint16_t lanes[16] = {};
  memcpy(lanes, p, static_cast<size_t>(n) * 2);
  return load_bf16(lanes);
}
PUNA_INLINE void store_f16_n(uint16_t* p, f32x16 v, int n) {
  uint16_t lanes[16];
  store_f16(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(n) * 2);
}
PUNA_INLINE void store_bf16_n(uint16_t* p, f32x16 v, int n) {
  uint16_t lanes[16];
  store_bf16(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(n) * 2);
}

}  // namespace puna::PUNA_NS
