// The search for scales and offsets of quantized weights.
//
// Sixteen groups of neighbouring weights are quantized at once, a group in each lane: every sum over a group is one chain
// in the order of its elements, so all variants find the same. What is minimized is sum of w·(x - x')², the weighted
// squared error of the values that a reader will see; w is 1, or the importance of the column.
#pragma once

#include "quant/iq4.h"
#include "simd/simd.h"

namespace puna::PUNA_NS {

inline constexpr int kLanes = 16;
inline constexpr float kLeastPeak = 0x1p-60f;  // groups below are zeros: no float16 scale is that small

// Element-major: x[i] holds element i of sixteen groups.
template <int N>
struct Groups {
  f32x16 x[N], w[N], wx[N];
};

PUNA_INLINE f32x16 clamp(f32x16 v, f32x16 low, f32x16 high) { return min(max(v, low), high); }
PUNA_INLINE f32x16 rounded(f32x16 v) { return cvt_f32(round_i32(v)); }
PUNA_INLINE f32x16 round_half(f32x16 v) {
  uint16_t halves[kLanes];
  store_f16(halves, v);
  return load_f16(halves);
}
// 1/v, or 0 where |v| is too small to be a scale.
PUNA_INLINE f32x16 inverse(f32x16 v) {
  return select_lt(set1(kLeastPeak), abs(v), div(set1(1.0f), v), zero());
}

// ---- values that a code stands for, before the scale ------------------------------------------------------------

// Consecutive integers from Low to High; the stored code is the value minus Low, or the value itself in eight bits.
template <int Low, int High>
struct Integers {
  static constexpr bool kIsSigned = High > 64;
  PUNA_INLINE f32x16 nearest(f32x16 v) {
    return rounded(clamp(v, set1(static_cast<float>(Low)), set1(static_cast<float>(High))));
  }
  PUNA_INLINE i32x16 code(f32x16 v) {
    const i32x16 value = round_i32(nearest(v));
    return kIsSigned ? value : sub_i32(value, set1_i32(Low));
  }
};

// The table of IQ4_NL and IQ4_XS.
struct Iq4Table {
  PUNA_INLINE float border(int k) { return 0.5f * static_cast<float>(kIq4Values[k] + kIq4Values[k + 1]); }
  PUNA_INLINE f32x16 nearest(f32x16 v) {
    f32x16 value = set1(static_cast<float>(kIq4Values[0]));
    for (int k = 0; k < 15; ++k) {
      value = select_lt(set1(border(k)), v, set1(static_cast<float>(kIq4Values[k + 1])), value);
    }
    return value;
  }
  PUNA_INLINE i32x16 code(f32x16 v) {
    f32x16 index = zero();
    for (int k = 0; k < 15; ++k) index = select_lt(set1(border(k)), v, set1(static_cast<float>(k + 1)), index);
    return round_i32(index);
  }
};

// ---- scale alone ------------------------------------------------------------------------------------------------

// Evenly spaced numbers.
struct Sweep {
  float first, step;
  int count;
  float at(int k) const { return first + step * static_cast<float>(k); }
};

struct Peak {
  f32x16 value, size;  // the element of the largest magnitude, and that
};
template <int N>
PUNA_INLINE Peak peak_of(const Groups<N>& g) {
  Peak peak = {zero(), zero()};
  for (int i = 0; i < N; ++i) {
    const f32x16 size = abs(g.x[i]);
    peak.value = select_lt(peak.size, size, g.x[i], peak.value);
    peak.size = max(peak.size, size);
  }
  return peak;
}

// Keeps the scale that explains most: with codes that stand for q, the best scale is sum wxq / sum wqq, and what it
// takes away from sum wxx is (sum wxq)² / sum wqq.
template <int N, typename Values>
struct BestScale {
  f32x16 scale, gain;

  __attribute__((noinline)) void consider(const Groups<N>& g, f32x16 inverse_scale) {
    f32x16 sum_xq = zero(), sum_qq = zero();
    for (int i = 0; i < N; ++i) {
      const f32x16 q = Values::nearest(mul(g.x[i], inverse_scale));
      sum_xq = fma(q, g.wx[i], sum_xq);
      sum_qq = fma(mul(q, g.w[i]), q, sum_qq);
    }
    const f32x16 best = select_lt(zero(), sum_qq, div(sum_xq, sum_qq), zero());
    const f32x16 found = mul(best, sum_xq);
    scale = select_lt(gain, found, best, scale);
    gain = max(found, gain);
  }
};

// The best scale of each group: the peak is laid on each number of `up` and of `down`; then codes and scale are fitted
// to each other.
template <int N, typename Values>
f32x16 search_scale(const Groups<N>& g, Sweep up, Sweep down) {
  const f32x16 unit = inverse(peak_of(g).value);
  BestScale<N, Values> best = {zero(), zero()};
  for (int k = 0; k < up.count; ++k) best.consider(g, mul(set1(up.at(k)), unit));
  for (int k = 0; k < down.count; ++k) best.consider(g, mul(set1(down.at(k)), unit));
  for (int round = 0; round < 2; ++round) best.consider(g, inverse(best.scale));
  return best.scale;
}

// Positive scales as float16, the peak on each number of the sweep. Errors are summed and not derived from what a scale
// explains: with eight bits they are too small a part of it.
template <int N, typename Values>
f32x16 search_fine_scale(const Groups<N>& g, Sweep sweep) {
  const f32x16 size = peak_of(g).size;
  f32x16 best = zero(), least = set1(__builtin_inff());
  for (int k = 0; k < sweep.count; ++k) {
    const f32x16 scale = round_half(mul(size, set1(1.0f / sweep.at(k)))), per = inverse(scale);
    f32x16 error = zero();
    for (int i = 0; i < N; ++i) {
      const f32x16 rest = fma(neg(scale), Values::nearest(mul(g.x[i], per)), g.x[i]);
      error = fma(mul(rest, g.w[i]), rest, error);
    }
    best = select_lt(error, least, scale, best);
    least = min(error, least);
  }
  return best;
}

// ---- scale and offset -------------------------------------------------------------------------------------------

struct Affine {
  f32x16 scale, low;  // a code q stands for scale·q + low
};

// Codes 0 … Most with a scale and an offset, which with kFromZero is not above 0. As BestScale; the best pair solves two
// equations.
template <int N, int Most, bool kFromZero>
struct BestAffine {
  f32x16 sum_w, sum_wx;
  Affine best;
  f32x16 gain;

  explicit BestAffine(const Groups<N>& g) : sum_w(zero()), sum_wx(zero()) {
    for (int i = 0; i < N; ++i) {
      sum_w = add(sum_w, g.w[i]);
      sum_wx = add(sum_wx, g.wx[i]);
    }
    const f32x16 mean = div(sum_wx, sum_w);
    best = {zero(), kFromZero ? min(mean, zero()) : mean};
    gain = mul(best.low, sum_wx);
  }

  // Codes are the nearest to (x - low) · per.
  __attribute__((noinline)) void consider(const Groups<N>& g, f32x16 low, f32x16 per) {
    f32x16 sum_q = zero(), sum_qq = zero(), sum_xq = zero();
    for (int i = 0; i < N; ++i) {
      const f32x16 q = Integers<0, Most>::nearest(mul(sub(g.x[i], low), per));
      const f32x16 wq = mul(q, g.w[i]);
      sum_q = add(sum_q, wq);
      sum_qq = fma(wq, q, sum_qq);
      sum_xq = fma(q, g.wx[i], sum_xq);
    }
    const f32x16 alone = select_lt(zero(), sum_qq, div(sum_xq, sum_qq), zero());
    const f32x16 determinant = fma(sum_w, sum_qq, neg(mul(sum_q, sum_q)));
    const f32x16 over = select_lt(mul(set1(0x1p-18f), mul(sum_w, sum_qq)), determinant, div(set1(1.0f), determinant),
                                  zero());
    f32x16 scale = mul(fma(sum_w, sum_xq, neg(mul(sum_wx, sum_q))), over);
    f32x16 offset = mul(fma(sum_qq, sum_wx, neg(mul(sum_q, sum_xq))), over);
    if (kFromZero) {
      scale = select_lt(zero(), offset, alone, scale);
      offset = min(offset, zero());
    }
    const f32x16 found = select_lt(zero(), scale, fma(scale, sum_xq, mul(offset, sum_wx)), zero());
    best.scale = select_lt(gain, found, scale, best.scale);
    best.low = select_lt(gain, found, offset, best.low);
    gain = max(found, gain);
  }
};

// The best scale and offset of each group: its range is laid on each number of codes of the sweep, around the middle;
// then codes, scale and offset are fitted to each other.
template <int N, int Most, bool kFromZero>
Affine search_affine(const Groups<N>& g, Sweep codes, Sweep shifts) {
  f32x16 low = g.x[0], high = g.x[0];
  for (int i = 1; i < N; ++i) {
    low = min(g.x[i], low);
    high = max(g.x[i], high);
  }
  if (kFromZero) low = min(low, zero());
  const f32x16 unit = inverse(sub(high, low)), middle = mul(add(low, high), set1(0.5f));
  const f32x16 length = mul(sub(high, low), set1(0.5f * static_cast<float>(Most)));
  BestAffine<N, Most, kFromZero> found(g);
  for (int k = 0; k < codes.count; ++k) {
    const f32x16 per = mul(unit, set1(codes.at(k))), half = mul(length, set1(1.0f / codes.at(k)));
    for (int j = 0; j < shifts.count; ++j) {
      const f32x16 shift = mul(set1(shifts.at(j) * 2.0f / static_cast<float>(Most)), half);
      found.consider(g, sub(sub(middle, half), shift), per);
    }
    if (kFromZero) found.consider(g, low, per);
  }
  for (int round = 0; round < 3; ++round) found.consider(g, found.best.low, inverse(found.best.scale));
  return found.best;
}

}  // namespace puna::PUNA_NS
