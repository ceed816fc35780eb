// The integer tile for AVX2, which has no int8 dot product: vpmaddubsw multiplies unsigned by signed bytes and adds
// pairs in 16 bits. As many of these as provably fit are added in 16-bit lanes before one vpmaddwd widens them, which
// also multiplies by the integer scales of Q6_K.
//
// What fits, for four vectors (16 k) at a time, activations within ±127:
//   codes up to 15   eight vectors: 8·2·15·127 = 30480
//   codes up to 31   four vectors: 4·2·31·127 = 31496
//   codes 0..63, minus 32: four vectors, started at -32 times the activations' sums; 16-bit lanes may wrap on the way,
//                    the final value lies within 4·2·32·127 = 32512
//   signed codes     |w|·(a with w's sign): 2·128·127 = 32512, widened one by one
#pragma once

#include "../quant/a8.h"
#include "../quant/codes.h"

namespace puna::PUNA_NS {

PUNA_INLINE __m256i broadcast_word(const uint8_t* p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return _mm256_set1_epi32(x);
}
// gcc re-associates chains of additions and then spills; an opaque value keeps them as written.
PUNA_INLINE __m256i opaque(__m256i x) {
  __asm__("" : "+x"(x));
  return x;
}

// Code vectors 4·G .. 4·G+3.
template <class W, int G>
PUNA_INLINE void load_group(const uint8_t* unit, int block, int p, __m256i* w) {
  w[0] = W::template codes<4 * G>(unit, block, p).v;
  w[1] = W::template codes<4 * G + 1>(unit, block, p).v;
  w[2] = W::template codes<4 * G + 2>(unit, block, p).v;
  w[3] = W::template codes<4 * G + 3>(unit, block, p).v;
}

// The products of four code vectors with 16 activations, added in 16 bits on top of `sum`.
PUNA_INLINE __m256i add_group(__m256i sum, const __m256i* w, const uint8_t* x) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    sum = opaque(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w[i], broadcast_word(x + 4 * i))));
  }
  return sum;
}
PUNA_INLINE __m256i first_group(const __m256i* w, const uint8_t* x) {
  __m256i sum = _mm256_maddubs_epi16(w[0], broadcast_word(x));
#pragma GCC unroll 3
  for (int i = 1; i < 4; ++i) {
    sum = opaque(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w[i], broadcast_word(x + 4 * i))));
  }
  return sum;
}

// Integer scales of a sub-block as pairs of equal int16.
PUNA_INLINE __m256i scale_pairs(const int8_t* scales) {
  const __m256i wide = _mm256_cvtepi8_epi32(load_m64i(scales));
  return _mm256_or_si256(_mm256_slli_epi32(wide, 16), _mm256_and_si256(wide, _mm256_set1_epi32(0xffff)));
}

// Group G of one block for all T rows. `sum` holds 16-bit sums between the groups where codes are at most 15, else
// int32.
template <class W, int T, int G>
PUNA_INLINE void accumulate(const uint8_t* unit, int block, int p, const uint8_t* const* row, int64_t offset,
                            __m256i* sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i w[4];
  load_group<W, G>(unit, block, p, w);
  if constexpr (W::kSigned) {
    __m256i magnitude[4];
    for (int i = 0; i < 4; ++i) magnitude[i] = _mm256_abs_epi8(w[i]);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const uint8_t* x = row[t] + offset + 16 * G;
      __m256i s = G == 0 ? _mm256_setzero_si256() : sum[t];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i a = _mm256_sign_epi8(broadcast_word(x + 4 * i), w[i]);
        s = opaque(_mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude[i], a), ones)));
      }
      sum[t] = s;
    }
  } else if constexpr (W::kSubScales) {
    const __m256i scale = scale_pairs(W::sub_scale(unit, block, G, p));
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const uint8_t* x = row[t] + offset;
      const __m256i minus = _mm256_slli_epi16(broadcast_word(x + kA8MinusPairs + 4 * G), __builtin_ctz(W::kZero));
      const __m256i s = _mm256_madd_epi16(add_group(minus, w, x + 16 * G), scale);
      sum[t] = G == 0 ? s : _mm256_add_epi32(sum[t], s);
    }
  } else if constexpr (W::kMaxCode <= 15) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const uint8_t* x = row[t] + offset + 16 * G;
      sum[t] = G == 0 ? first_group(w, x) : _mm256_madd_epi16(add_group(sum[t], w, x), ones);
    }
  } else {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256i s = _mm256_madd_epi16(first_group(w, row[t] + offset + 16 * G), ones);
      sum[t] = G == 0 ? s : _mm256_add_epi32(sum[t], s);
    }
  }
}

// acc[T][16] = one panel times T rows of a8 blocks.
template <class W, int T>
[[gnu::noinline]] void integer_tile(const uint8_t* panel, int64_t units, const uint8_t* const* rows, float* out) {
  constexpr int kBlocks = W::kUnitElements / kA8BlockElements, kBlockBytes = W::kUnitBytes / kBlocks;
  // Written through memory: the registers are for the sums of the block at hand.
  for (int i = 0; i < T * kPanelRows; ++i) out[i] = 0.0f;
  const uint8_t* row[T];
  for (int t = 0; t < T; ++t) row[t] = rows[t];
  int64_t offset = 0;
  for (const uint8_t *unit = panel, *end = panel + units * W::kUnitBytes; unit != end; unit += W::kUnitBytes) {
    for (int block = 0; block < kBlocks; ++block, offset += kA8BlockBytes) {
      prefetch_block<kBlockBytes, T>(unit + kBlockBytes * block);
      for (int p = 0; p < kParts; ++p) {
        __m256i sum[T];
        accumulate<W, T, 0>(unit, block, p, row, offset, sum);
        accumulate<W, T, 1>(unit, block, p, row, offset, sum);
        const fvec scale = W::scale(unit, block, p);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const uint8_t* x = row[t] + offset;
          __m256i s = sum[t];
          if constexpr (W::kZero != 0 && !W::kSubScales) {
            s = _mm256_add_epi32(s, _mm256_slli_epi32(broadcast_word(x + kA8Minus8), __builtin_ctz(W::kZero) - 3));
          }
          float d, dsum;
          memcpy(&d, x + kA8Scale, sizeof d);
          memcpy(&dsum, x + kA8ScaledSum, sizeof dsum);
          float* lanes = out + kPanelRows * t + kNativeRows * p;
          fvec acc = fma(mul(cvt_f32(ivec{s}), scale), nset1(d), nload(lanes));
          if constexpr (W::kHasOffset) acc = fma(W::offset(unit, block, p), nset1(dsum), acc);
          nstore(lanes, acc);
        }
      }
    }
  }
}

}  // namespace puna::PUNA_NS
