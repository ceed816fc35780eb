// The integer tiles for AVX2, which has no int8 dot product: vpmaddubsw multiplies unsigned by signed bytes and adds
// pairs in 16 bits. As many of these as provably fit are added in 16-bit lanes before one vpmaddwd widens them, which
// also multiplies by the integer scales of Q6_K.
//
// What fits, for four vectors (16 k) at a time, activations within ±127:
//   codes up to 15, or up to 16 on either side of the zero point   eight vectors: 8·2·16·127 = 32512
//   codes up to 31   four vectors: 4·2·31·127 = 31496
//   codes 0..63, minus 32: four vectors, 4·2·32·127 = 32512
//   signed codes     |w|·(a with w's sign): 2·128·127 = 32512, widened one by one
// A zero point is taken out by what a sum starts at: 16-bit lanes may wrap on the way, the final value fits.
//
// One kernel serves any number of rows. The weights of 16 k and of a whole panel are in registers, so that a word of
// activations is read once for both vectors of the panel: reading it for each would limit the speed. Sums wait in the
// nearest cache for the other 16 k of their block.
#pragma once

#include "../quant/a8.h"
#include "../quant/codes.h"
#include "matmul.h"

namespace puna::PUNA_NS {

PUNA_INLINE __m256i broadcast_word(const uint8_t* p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return _mm256_set1_epi32(x);
}
// Keeps gcc from carrying packed weights over from one group to the next, for which it would spill what the loop over
// rows needs.
PUNA_INLINE void forget_memory() { __asm__("" ::: "memory"); }
// gcc re-associates chains of additions and then spills; an opaque value keeps them as written.
PUNA_INLINE __m256i opaque(__m256i x) {
  __asm__("" : "+x"(x));
  return x;
}

// sum[p] += the products of 16 activations and the codes w[p], in 16 bits.
PUNA_INLINE void add_products(__m256i* sum, const __m256i (*w)[4], const uint8_t* x) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i a = broadcast_word(x + 4 * i);
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) sum[p] = opaque(_mm256_add_epi16(sum[p], _mm256_maddubs_epi16(w[p][i], a)));
  }
}

// Code vectors 4·G .. 4·G+3.
template <class W, int G>
PUNA_INLINE void load_group(const uint8_t* unit, int block, int p, __m256i* w) {
  w[0] = W::template codes<4 * G>(unit, block, p).v;
  w[1] = W::template codes<4 * G + 1>(unit, block, p).v;
  w[2] = W::template codes<4 * G + 2>(unit, block, p).v;
  w[3] = W::template codes<4 * G + 3>(unit, block, p).v;
}

// Integer scales of a sub-block as pairs of equal int16.
PUNA_INLINE __m256i scale_pairs(const int8_t* scales) {
  const __m256i wide = _mm256_cvtepi8_epi32(load_m64i(scales));
  return _mm256_or_si256(_mm256_slli_epi32(wide, 16), _mm256_and_si256(wide, _mm256_set1_epi32(0xffff)));
}

// Whether the sums of both groups of a block fit in 16 bits together.
template <class W>
inline constexpr bool kOneSum = W::kLargest <= 16 && !W::kSubScales;

// -8 times sums of activations, times a zero point: 4, 8, 16 or 32.
template <class W>
PUNA_INLINE __m256i minus_zero(__m256i minus8) {
  constexpr int kShift = __builtin_ctz(W::kZero) - 3;
  if constexpr (kShift < 0) return _mm256_srai_epi16(minus8, -kShift);
  else return _mm256_slli_epi16(minus8, kShift);
}

// Where the sums of group G start.
template <class W, int G>
PUNA_INLINE __m256i start_of(const uint8_t* x) {
  const uint8_t* minus8 = x + kA8Minus8;
  if constexpr (W::kZero == 0) return _mm256_setzero_si256();
  else if constexpr (kOneSum<W>) {
    return minus_zero<W>(_mm256_add_epi16(broadcast_word(minus8), broadcast_word(minus8 + 4)));
  } else {
    return minus_zero<W>(broadcast_word(minus8 + 4 * G));
  }
}

// Group G of a block for all rows. Between the groups, sums wait in `waiting`[rows][16].
template <class W, int G>
PUNA_INLINE void multiply_unsigned(const uint8_t* unit, int block, const uint8_t* x, int64_t row_bytes, int64_t rows,
                                   float* waiting, float* out) {
  __m256i w[kParts][4], factor[kParts];
  fvec scale[kParts], offset[kParts], min_scale[kParts];
  __m256i mins[kParts][2];
  for (int p = 0; p < kParts; ++p) {
    load_group<W, G>(unit, block, p, w[p]);
    if constexpr (W::kSubScales) factor[p] = scale_pairs(W::sub_scale(unit, block, G, p));
    else factor[p] = _mm256_set1_epi16(1);
    scale[p] = W::scale(unit, block, p);
    if constexpr (W::kHasOffset) offset[p] = W::offset(unit, block, p);
    if constexpr (W::kSubMins) {
      min_scale[p] = eighth(W::min_scale(unit, p));
      for (int j = 0; j < 2; ++j) mins[p][j] = scale_pairs(W::sub_min(unit, block, j, p));
    }
  }
  forget_memory();
  for (int64_t t = 0; t < kPanelRows * rows; t += kPanelRows, x += row_bytes) {
    __m256i* const held = reinterpret_cast<__m256i*>(waiting + t);
    __m256i sum[kParts];
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) sum[p] = G == 1 && kOneSum<W> ? _mm256_load_si256(held + p) : start_of<W, G>(x);
    add_products(sum, w, x + 16 * G);
    float d, dsum;
    memcpy(&d, x + kA8Scale, sizeof d);
    memcpy(&dsum, x + kA8ScaledSum, sizeof dsum);
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      if constexpr (G == 1 || !kOneSum<W>) sum[p] = _mm256_madd_epi16(sum[p], factor[p]);
      if constexpr (G == 0) {
        _mm256_store_si256(held + p, sum[p]);
        continue;
      }
      if constexpr (!kOneSum<W>) sum[p] = _mm256_add_epi32(sum[p], _mm256_load_si256(held + p));
      float* lanes = out + t + kNativeRows * p;
      fvec acc = fma(mul(cvt_f32(ivec{sum[p]}), scale[p]), nset1(d), nload(lanes));
      if constexpr (W::kHasOffset) acc = fma(offset[p], nset1(dsum), acc);
      if constexpr (W::kSubMins) {
        const __m256i first = _mm256_madd_epi16(mins[p][0], broadcast_word(x + kA8Minus8));
        const __m256i second = _mm256_madd_epi16(mins[p][1], broadcast_word(x + kA8Minus8 + 4));
        acc = fma(mul(cvt_f32(ivec{_mm256_add_epi32(first, second)}), min_scale[p]), nset1(d), acc);
      }
      nstore(lanes, acc);
    }
  }
}

// The same for signed codes: |code| times the activation with the code's sign, widened one by one.
template <class W, int G>
PUNA_INLINE void multiply_signed(const uint8_t* unit, int block, int p, const uint8_t* x, int64_t row_bytes,
                                 int64_t rows, float* waiting, float* out) {
  __m256i w[4], magnitude[4];
  load_group<W, G>(unit, block, p, w);
  for (int i = 0; i < 4; ++i) magnitude[i] = _mm256_abs_epi8(w[i]);
  const __m256i ones = _mm256_set1_epi16(1);
  const fvec scale = W::scale(unit, block, p);
  forget_memory();
  for (int64_t t = 0; t < kPanelRows * rows; t += kPanelRows, x += row_bytes) {
    __m256i* const held = reinterpret_cast<__m256i*>(waiting + t);
    __m256i sum = G == 0 ? _mm256_setzero_si256() : _mm256_load_si256(held);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i a = _mm256_sign_epi8(broadcast_word(x + 16 * G + 4 * i), w[i]);
      sum = opaque(_mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude[i], a), ones)));
    }
    if constexpr (G == 0) {
      _mm256_store_si256(held, sum);
    } else {
      float d;
      memcpy(&d, x + kA8Scale, sizeof d);
      nstore(out + t, fma(mul(cvt_f32(ivec{sum}), scale), nset1(d), nload(out + t)));
    }
  }
}

inline constexpr int64_t panels_together(int64_t) { return 1; }

// One panel times any number of rows.
template <class W>
[[gnu::noinline]] void multiply(const IntegerOperands& operands, int64_t, float* out) {
  constexpr int kBlocks = W::kUnitElements / kA8BlockElements, kBlockBytes = W::kUnitBytes / kBlocks;
  const int64_t rows = operands.rows, row_bytes = operands.row_bytes;
  const uint8_t* x = operands.x;
  alignas(64) float waiting[kPanelRows * kPassRows];
  memset(out, 0, static_cast<size_t>(rows * kPanelRows) * sizeof(float));
  const uint8_t* const end = operands.panel + operands.units * W::kUnitBytes;
  for (const uint8_t* unit = operands.panel; unit != end; unit += W::kUnitBytes) {
    for (int block = 0; block < kBlocks; ++block, x += kA8BlockBytes) {
      if (rows >= kPrefetchRows) prefetch_block<kBlockBytes>(unit + kBlockBytes * block);
      if constexpr (W::kSigned) {
        for (int p = 0; p < kParts; ++p) {
          multiply_signed<W, 0>(unit, block, p, x, row_bytes, rows, waiting, out + kNativeRows * p);
          multiply_signed<W, 1>(unit, block, p, x, row_bytes, rows, waiting, out + kNativeRows * p);
        }
      } else {
        multiply_unsigned<W, 0>(unit, block, x, row_bytes, rows, waiting, out);
        multiply_unsigned<W, 1>(unit, block, x, row_bytes, rows, waiting, out);
      }
    }
  }
}

}  // namespace puna::PUNA_NS
