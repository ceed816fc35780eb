// Sixteen rows of 16 bytes, written column by column.
//
// On x86 in registers of 256 bits, AVX-512 too: two rows that are half the number of rows apart make one register, so
// that all shuffles stay within 128 bits.
#pragma once

#include "simd.h"

namespace puna::PUNA_NS {

// Bytes of a row that are transposed at a time.
constexpr int64_t kTransposedBytes = 16;

#if defined(PUNA_VARIANT_AVX512) || defined(PUNA_VARIANT_AMX) || defined(PUNA_VARIANT_AVX2)

PUNA_INLINE __m256i two_halves(const uint8_t* low, const uint8_t* high) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}
PUNA_INLINE void store_column(void* p, __m256i column) { _mm256_storeu_si256(static_cast<__m256i*>(p), column); }

// columns[8][16]: the words rows[0 … 15][offset …].
PUNA_INLINE void transpose_words(const uint8_t* const* rows, int64_t offset, uint16_t* columns) {
  __m256i a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = two_halves(rows[i] + offset, rows[i + 8] + offset);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // pairs of rows
    b[2 * i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {  // four rows, two columns
    a[4 * i] = _mm256_unpacklo_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm256_unpackhi_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm256_unpacklo_epi32(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm256_unpackhi_epi32(b[4 * i + 1], b[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // eight rows, one column
    store_column(columns + 32 * i, _mm256_unpacklo_epi64(a[i], a[i + 4]));
    store_column(columns + 32 * i + 16, _mm256_unpackhi_epi64(a[i], a[i + 4]));
  }
}

// columns[4][16]: the double words rows[0 … 15][offset …].
PUNA_INLINE void transpose_dwords(const uint8_t* const* rows, int64_t offset, uint32_t* columns) {
#pragma GCC unroll 2
  for (int first = 0; first < 16; first += 8) {
    __m256i a[4], b[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) a[i] = two_halves(rows[first + i] + offset, rows[first + i + 4] + offset);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {  // pairs of rows
      b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
      b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {  // four rows, one column
      store_column(columns + 32 * i + first, _mm256_unpacklo_epi64(b[i], b[i + 2]));
      store_column(columns + 32 * i + 16 + first, _mm256_unpackhi_epi64(b[i], b[i + 2]));
    }
  }
}

#else

PUNA_INLINE void transpose_words(const uint8_t* const* rows, int64_t offset, uint16_t* columns) {
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 8; ++c) memcpy(columns + 16 * c + r, rows[r] + offset + 2 * c, 2);
  }
}

PUNA_INLINE void transpose_dwords(const uint8_t* const* rows, int64_t offset, uint32_t* columns) {
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 4; ++c) memcpy(columns + 16 * c + r, rows[r] + offset + 4 * c, 4);
  }
}

#endif

}  // namespace puna::PUNA_NS
