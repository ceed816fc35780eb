// Arithmetic without memory, in the instructions that the kernels of this variant use: what the machine does at most.
#include "ops/kernels.h"

#include "quant/a8.h"
#include "quant/codes.h"
#ifdef PUNA_VARIANT_AVX2
#include "dot_deferred.h"
#endif

namespace puna::PUNA_NS {
namespace {

// Chains that do not wait for each other: latency times instructions per cycle, and no more than fit the registers.
// Each begins with another value, and all end in the result: compilers leave out what is computed twice or for nothing.
constexpr int kChains = 12;

// Compilers must think that the bytes changed, or products of them would be computed once.
PUNA_INLINE void touch(uint8_t (&bytes)[128]) { __asm__("" : "+m"(bytes)); }

}  // namespace

int64_t float_peak(int64_t repeats, float* out) {
  fvec acc[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) acc[c] = nset1(static_cast<float>(c));
  const fvec factor = nset1(0.5f), addend = nset1(0.25f);
  for (int64_t i = 0; i < repeats; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      acc[c] = fma(acc[c], factor, addend);
      pin(acc[c]);
    }
  }
  fvec total = acc[0];
#pragma GCC unroll 16
  for (int c = 1; c < kChains; ++c) total = fma(total, factor, acc[c]);
  nstore(out, total);
  return repeats * kChains * kNativeRows * 2;
}

#ifdef PUNA_VARIANT_AVX2

// Eight products of 4-bit codes are added in 16 bits before they are widened, as the tiles do it.
int64_t int8_peak(int64_t repeats, float* out) {
  constexpr int kTokens = 2;
  uint8_t activations[128];
  for (int i = 0; i < 128; ++i) activations[i] = static_cast<uint8_t>(i);
  __m256i acc[kParts], codes[kParts][4];
  for (int p = 0; p < kParts; ++p) {
    acc[p] = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) codes[p][i] = _mm256_set1_epi8(static_cast<char>(3 + p));
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < repeats; ++i) {
    touch(activations);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const uint8_t* x = activations + 32 * t;
      __m256i sum[kParts] = {};
      add_products(sum, codes, x);
      add_products(sum, codes, x + 16);
#pragma GCC unroll 2
      for (int p = 0; p < kParts; ++p) acc[p] = opaque(_mm256_add_epi32(acc[p], _mm256_madd_epi16(sum[p], ones)));
    }
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_add_epi32(acc[0], acc[1]));
  return repeats * kTokens * kParts * 8 * 32 * 2;
}

#else

int64_t int8_peak(int64_t repeats, float* out) {
  uint8_t bytes[128];
  for (int i = 0; i < 128; ++i) bytes[i] = static_cast<uint8_t>(i);
  const bvec codes = bload(bytes);
  ivec acc[kChains];
#pragma GCC unroll 16
  for (int c = 0; c < kChains; ++c) acc[c] = dot4(start<0, false>(bytes), codes, bytes + 4 * c);
  for (int64_t i = 0; i < repeats; ++i) {
    touch(bytes);
#pragma GCC unroll 16
    for (int c = 0; c < kChains; ++c) {
      acc[c] = dot4(acc[c], codes, bytes + 4 * c);
      pin(acc[c]);
    }
  }
  fvec total = cvt_f32(acc[0]);
#pragma GCC unroll 16
  for (int c = 1; c < kChains; ++c) total = fma(total, nset1(0.5f), cvt_f32(acc[c]));
  nstore(out, total);
  return repeats * kChains * kNativeRows * 4 * 2;
}

#endif

}  // namespace puna::PUNA_NS
