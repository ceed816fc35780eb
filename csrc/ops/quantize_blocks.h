// Scales of super-blocks: 256 weights whose groups share a float16 scale of their integer scales (and of their mins).
//
// The groups' own best scales come first; they give the common one. Then integer scales and common scale are fitted to
// each other: for every group those near its own, by the error that they really leave, and the common scale that is best
// for all. The best of some rounds stays.
#pragma once

#include "ops/quantize_search.h"

namespace puna::PUNA_NS {

inline constexpr int kBlockElements = 256;

// Numbers of the super-blocks of sixteen lanes, one after the other; each has `kPer` lanes.
template <int kPer>
struct BlockSums {
  float sums[kLanes / kPer];
  explicit BlockSums(f32x16 lanes) {
    float v[kLanes];
    store(v, lanes);
    for (int b = 0; b < kLanes / kPer; ++b) {
      sums[b] = 0.0f;
      for (int l = 0; l < kPer; ++l) sums[b] += v[b * kPer + l];
    }
  }
};

template <int kPer>
PUNA_INLINE f32x16 spread(const float* of_blocks) {
  float v[kLanes];
  for (int l = 0; l < kLanes; ++l) v[l] = of_blocks[l / kPer];
  return load(v);
}

// The lane of largest magnitude of each super-block, in all of its lanes.
template <int kPer>
PUNA_INLINE f32x16 block_peaks(f32x16 lanes) {
  float v[kLanes], peaks[kLanes / kPer];
  store(v, lanes);
  for (int b = 0; b < kLanes / kPer; ++b) {
    peaks[b] = 0.0f;
    for (int l = b * kPer; l < (b + 1) * kPer; ++l) {
      if (__builtin_fabsf(v[l]) > __builtin_fabsf(peaks[b])) peaks[b] = v[l];
    }
  }
  return spread<kPer>(peaks);
}

// ---- scale alone ------------------------------------------------------------------------------------------------

struct ScaledGroups {
  f32x16 d, scale;  // of a super-block; of the group, an integer
  f32x16 error;     // of the super-block
};

template <int N, typename Values, int Low, int High>
struct ScaleFit {
  static constexpr int kPer = kBlockElements / N;
  const Groups<N>& g;
  ScaledGroups best;

  explicit ScaleFit(const Groups<N>& groups) : g(groups), best{zero(), zero(), set1(__builtin_inff())} {}

  // The best integer scales near `wanted` for a common scale d, a float16.
  __attribute__((noinline)) f32x16 choose(f32x16 d, f32x16 wanted) {
    const f32x16 low = set1(static_cast<float>(Low)), high = set1(static_cast<float>(High));
    const f32x16 middle = rounded(clamp(mul(wanted, inverse(d)), low, high));
    f32x16 chosen = middle, least = set1(__builtin_inff());
    for (int off = -1; off <= 1; ++off) {
      const f32x16 scale = clamp(add(middle, set1(static_cast<float>(off))), low, high);
      const f32x16 step = mul(d, scale), per = inverse(step);
      f32x16 error = zero();
      for (int i = 0; i < N; ++i) {
        const f32x16 rest = fma(neg(step), Values::nearest(mul(g.x[i], per)), g.x[i]);
        error = fma(mul(rest, g.w[i]), rest, error);
      }
      chosen = select_lt(error, least, scale, chosen);
      least = min(error, least);
    }
    const f32x16 total = spread<kPer>(BlockSums<kPer>(least).sums);
    best.d = select_lt(total, best.error, d, best.d);
    best.scale = select_lt(total, best.error, chosen, best.scale);
    best.error = min(total, best.error);
    return chosen;
  }

  // The best common scale for integer scales and the codes that go with them.
  f32x16 fit(f32x16 d, f32x16 scale) const {
    const f32x16 per = inverse(mul(d, scale));
    f32x16 sum_xq = zero(), sum_qq = zero();
    for (int i = 0; i < N; ++i) {
      const f32x16 q = mul(scale, Values::nearest(mul(g.x[i], per)));
      sum_xq = fma(q, g.wx[i], sum_xq);
      sum_qq = fma(mul(q, g.w[i]), q, sum_qq);
    }
    const BlockSums<kPer> xq(sum_xq), qq(sum_qq);
    float fitted[kLanes / kPer];
    for (int b = 0; b < kLanes / kPer; ++b) fitted[b] = qq.sums[b] > 0.0f ? xq.sums[b] / qq.sums[b] : 0.0f;
    return round_half(spread<kPer>(fitted));
  }
};

template <int N, typename Values, int Low, int High>
ScaledGroups search_scales(const Groups<N>& g, Sweep up, Sweep down) {
  const f32x16 wanted = search_scale<N, Values>(g, up, down);
  const f32x16 peak = block_peaks<kBlockElements / N>(wanted);
  ScaleFit<N, Values, Low, High> fit(g);
  for (int side = 0; side < 2; ++side) {  // the peak takes the largest number of either sign
    f32x16 d = round_half(mul(peak, set1(1.0f / static_cast<float>(side == 0 ? Low : High))));
    for (int round = 0; round < 2; ++round) d = fit.fit(d, fit.choose(d, wanted));
    fit.choose(d, wanted);
  }
  return fit.best;
}

// ---- scale and min ----------------------------------------------------------------------------------------------

struct AffineGroups {
  f32x16 d, m;         // of a super-block: common scales of scales and mins
  f32x16 scale, min;   // of the group, integers; a code q stands for d·scale·q - m·min
  f32x16 error;        // of the super-block
};

template <int N, int Most, int High, int Reach>
struct AffineFit {
  static constexpr int kPer = kBlockElements / N;
  using Codes = Integers<0, Most>;
  const Groups<N>& g;
  AffineGroups best;

  explicit AffineFit(const Groups<N>& groups)
      : g(groups), best{zero(), zero(), zero(), zero(), set1(__builtin_inff())} {}

  __attribute__((noinline)) AffineGroups choose(f32x16 d, f32x16 m, const Affine& wanted) {
    const f32x16 high = set1(static_cast<float>(High));
    const f32x16 scale0 = rounded(clamp(mul(wanted.scale, inverse(d)), zero(), high));
    const f32x16 min0 = rounded(clamp(mul(neg(wanted.low), inverse(m)), zero(), high));
    f32x16 scale = scale0, min = min0, least = set1(__builtin_inff());
    for (int off = -Reach; off <= Reach; ++off) {
      const f32x16 s = clamp(add(scale0, set1(static_cast<float>(off))), zero(), high);
      const f32x16 step = mul(d, s), per = inverse(step);
      for (int shift = -Reach; shift <= Reach; ++shift) {
        const f32x16 n = clamp(add(min0, set1(static_cast<float>(shift))), zero(), high);
        const f32x16 low = mul(m, n);
        f32x16 error = zero();
        for (int i = 0; i < N; ++i) {
          const f32x16 x = add(g.x[i], low);
          const f32x16 rest = fma(neg(step), Codes::nearest(mul(x, per)), x);
          error = fma(mul(rest, g.w[i]), rest, error);
        }
        scale = select_lt(error, least, s, scale);
        min = select_lt(error, least, n, min);
        least = PUNA_NS::min(error, least);
      }
    }
    const f32x16 total = spread<kPer>(BlockSums<kPer>(least).sums);
    best.d = select_lt(total, best.error, d, best.d);
    best.m = select_lt(total, best.error, m, best.m);
    best.scale = select_lt(total, best.error, scale, best.scale);
    best.min = select_lt(total, best.error, min, best.min);
    best.error = PUNA_NS::min(total, best.error);
    return {d, m, scale, min, total};
  }

  // Replaces d and m by the best ones for the integers and the codes that go with them; where these do not determine
  // both, they stay.
  void fit(AffineGroups& of) const {
    const f32x16 per = inverse(mul(of.d, of.scale)), low = mul(of.m, of.min);
    f32x16 sum_aa = zero(), sum_a = zero(), sum_ax = zero(), sum_w = zero(), sum_wx = zero();
    for (int i = 0; i < N; ++i) {
      const f32x16 a = mul(of.scale, Codes::nearest(mul(add(g.x[i], low), per))), wa = mul(a, g.w[i]);
      sum_aa = fma(wa, a, sum_aa);
      sum_a = add(sum_a, wa);
      sum_ax = fma(a, g.wx[i], sum_ax);
      sum_w = add(sum_w, g.w[i]);
      sum_wx = add(sum_wx, g.wx[i]);
    }
    const BlockSums<kPer> aa(sum_aa), ax(sum_ax), ab(mul(of.min, sum_a)), bb(mul(mul(of.min, of.min), sum_w)),
        bx(mul(of.min, sum_wx));
    float d[kLanes], m[kLanes];
    store(d, of.d);
    store(m, of.m);
    for (int b = 0; b < kLanes / kPer; ++b) {
      float new_d = d[b * kPer], new_m = m[b * kPer];
      const float determinant = aa.sums[b] * bb.sums[b] - ab.sums[b] * ab.sums[b];
      if (determinant > 0x1p-14f * aa.sums[b] * bb.sums[b]) {
        new_d = (ax.sums[b] * bb.sums[b] - bx.sums[b] * ab.sums[b]) / determinant;
        new_m = (ax.sums[b] * ab.sums[b] - bx.sums[b] * aa.sums[b]) / determinant;
      } else if (bb.sums[b] == 0.0f && aa.sums[b] > 0.0f) {
        new_d = ax.sums[b] / aa.sums[b];
      }
      if (!(new_d >= 0.0f && new_m >= 0.0f)) continue;
      for (int l = b * kPer; l < (b + 1) * kPer; ++l) {
        d[l] = new_d;
        m[l] = new_m;
      }
    }
    of.d = round_half(load(d));
    of.m = round_half(load(m));
  }
};

template <int N, int Most, int High, int Reach>
AffineGroups search_affines(const Groups<N>& g, Sweep codes, Sweep shifts, Sweep starts) {
  constexpr int kPer = kBlockElements / N;
  const Affine wanted = search_affine<N, Most, true>(g, codes, shifts);
  const f32x16 scales = block_peaks<kPer>(wanted.scale), mins = block_peaks<kPer>(neg(wanted.low));
  AffineFit<N, Most, High, Reach> fit(g);
  for (int k = 0; k < starts.count; ++k) {
    const f32x16 part = set1(starts.at(k) / static_cast<float>(High));
    AffineGroups of = {round_half(mul(scales, part)), round_half(mul(mins, part)), zero(), zero(), zero()};
    for (int round = 0; round < 3; ++round) {
      of = fit.choose(of.d, of.m, wanted);
      if (round < 2) fit.fit(of);
    }
  }
  return fit.best;
}

}  // namespace puna::PUNA_NS
