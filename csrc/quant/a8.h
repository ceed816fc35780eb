// a8: activations as int8 with one scale per 32 values, the partner of every integer weight format.
//
// A row of `cols` values (a multiple of 32) is ceil(cols/64)·2 blocks of 48 bytes, the last one zero where cols/32 is
// odd. A block:
//   codes[32] int8   a = round-to-nearest-even(x · (1/d)), in -127..127
//   d float32        max|x| / 127
//   dsum float32     d · float(sum a): what offsets and mins of weights are multiplied with
//   8 bytes          -8 · sum a of each half of 16 values, which take the zero point 8 out of a sum of unsigned codes
//                    (shifted: 16, 32, 128): as int32[2], or where products are added in 16-bit lanes as int16[2][2],
//                    over k % 4 < 2 and over k % 4 >= 2
// A block whose d is below the smallest normal float has d = 0 and codes 0. A block that holds an infinity or NaN has
// d = NaN and codes 0, so that the product is NaN.
//
// One base pointer serves codes and scales of a row. Rows are independent: any range of them can be quantized alone.
//
// In two terms, a row of x becomes two rows: its codes, and the codes of what these leave, x - d·a. Their products are
// summed; the error is that of about 15 bits instead of 7, at the price of a second row.
#pragma once

#include <stdint.h>

namespace puna {

inline constexpr int kA8BlockElements = 32;
inline constexpr int kA8BlockBytes = 48;
inline constexpr int kA8Scale = 32, kA8ScaledSum = 36, kA8Minus8 = 40;

// Blocks of a row, padded to the 64 columns of a packed unit.
constexpr int64_t a8_row_blocks(int64_t cols) { return (cols + 63) / 64 * 2; }

// Bytes from one row to the next: an odd number of cache lines, so that rows do not meet in the same cache sets.
constexpr int64_t a8_row_bytes(int64_t cols) { return ((a8_row_blocks(cols) * kA8BlockBytes + 63) / 64 | 1) * 64; }

}  // namespace puna

#ifdef PUNA_NS
#include "../simd/simd.h"

namespace puna::PUNA_NS {

// `rest`: null, or 32 floats for what the codes leave of x.
PUNA_INLINE void quantize_a8_block(const float* x, uint8_t* block, float* rest) {
  const f32x16 x0 = load(x), x1 = load(x + 16);
  // As integers the bit patterns of absolute values are ordered, NaN above infinity.
  const int32_t top = reduce_max_i32(max_i32(as_i32(abs(x0)), as_i32(abs(x1))));
  float largest;
  memcpy(&largest, &top, sizeof largest);
  float d = largest / 127.0f;
  f32x16 inverse = set1(1.0f / d);
  f32x16 y0 = mul(x0, inverse), y1 = mul(x1, inverse);
  if (top >= 0x7f800000 || d < 0x1p-126f) {
    d = top >= 0x7f800000 ? __builtin_nanf("") : 0.0f;
    y0 = y1 = zero();
  }
  const i32x16 a0 = round_i32(y0), a1 = round_i32(y1);
  store_i8(reinterpret_cast<int8_t*>(block), a0);
  store_i8(reinterpret_cast<int8_t*>(block) + 16, a1);
  if (rest != nullptr) {
    const f32x16 minus_d = set1(-d);
    store(rest, fma(minus_d, cvt_f32(a0), x0));
    store(rest + 16, fma(minus_d, cvt_f32(a1), x1));
  }
  // The sums of both halves of a block in one word: each fits in 16 bits.
  const i32x16 both = add_i32(a0, shl_i32<16>(a1));
  const int32_t all = reduce_add_i32(both), all0 = static_cast<int16_t>(all), all1 = (all - all0) >> 16;
  const float scaled = d * static_cast<float>(all0 + all1);
  if constexpr (kSumsInPairs) {
    static constexpr int32_t kLowPair[16] = {-1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0};
    const int32_t low = reduce_add_i32(and_i32(both, load_i32(kLowPair)));
    const int32_t low0 = static_cast<int16_t>(low), low1 = (low - low0) >> 16;
    const int16_t minus8[4] = {static_cast<int16_t>(-8 * low0), static_cast<int16_t>(8 * (low0 - all0)),
                               static_cast<int16_t>(-8 * low1), static_cast<int16_t>(8 * (low1 - all1))};
    memcpy(block + kA8Minus8, minus8, 8);
  } else {
    const int32_t minus8[2] = {-8 * all0, -8 * all1};
    memcpy(block + kA8Minus8, minus8, 8);
  }
  memcpy(block + kA8Scale, &d, 4);
  memcpy(block + kA8ScaledSum, &scaled, 4);
}

// `rows` rows of x (ldx floats apart) become rows first_row, first_row + 1 … of a8.
[[gnu::noinline, maybe_unused]] static void quantize_a8(const float* x, int64_t ldx, int64_t first_row, int64_t rows,
                                                        int64_t cols, uint8_t* a8) {
  const int64_t blocks = cols / kA8BlockElements, padded = a8_row_blocks(cols), stride = a8_row_bytes(cols);
  for (int64_t row = 0; row < rows; ++row) {
    const float* source = x + row * ldx;
    uint8_t* target = a8 + (first_row + row) * stride;
    for (int64_t b = 0; b < blocks; ++b) quantize_a8_block(source + 32 * b, target + kA8BlockBytes * b, nullptr);
    if (padded > blocks) memset(target + kA8BlockBytes * blocks, 0, kA8BlockBytes);
  }
}

// The same in two terms: row r of x becomes rows 2·(first_row + r) and 2·(first_row + r) + 1 of a8.
[[gnu::noinline, maybe_unused]] static void quantize_a8_two_terms(const float* x, int64_t ldx, int64_t first_row,
                                                                  int64_t rows, int64_t cols, uint8_t* a8) {
  const int64_t blocks = cols / kA8BlockElements, padded = a8_row_blocks(cols), stride = a8_row_bytes(cols);
  alignas(64) float rest[kA8BlockElements];
  for (int64_t row = 0; row < rows; ++row) {
    const float* source = x + row * ldx;
    uint8_t* first = a8 + 2 * (first_row + row) * stride;
    uint8_t* second = first + stride;
    for (int64_t b = 0; b < blocks; ++b) {
      quantize_a8_block(source + 32 * b, first + kA8BlockBytes * b, rest);
      quantize_a8_block(rest, second + kA8BlockBytes * b, nullptr);
    }
    if (padded > blocks) {
      memset(first + kA8BlockBytes * blocks, 0, kA8BlockBytes);
      memset(second + kA8BlockBytes * blocks, 0, kA8BlockBytes);
    }
  }
}

}  // namespace puna::PUNA_NS
#endif
