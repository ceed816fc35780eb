// How kernels read packed integer formats. Compiled once per variant.
//
// A format's `…Weights` struct describes one block of 32 k of sixteen rows to the kernels of csrc/ops/dot_*.h:
//   codes<I>(unit, block, p)   I = 0..7: the codes of k = 4·I .. 4·I+3, a byte each, of the rows of native vector p
//   scale(unit, block, p)      what float(S) is multiplied with, S being the exact sum of (code - kZero)·a
//   offset(unit, block, p)     (kHasOffset) what da·float(sum a) is multiplied with
//   sub_scale(unit, block, j, p)  (kSubScales) the integer scales of k = 16·j .. 16·j+15; then S = s0·S0 + s1·S1
//   sub_min(unit, block, j, p)    (kSubMins) integer mins of the same k, not negative; M = m0·A0 + m1·A1, A = sum a
//   min_scale(unit, p)            (kSubMins) what float(M) is multiplied with before it is taken off
// kMaxCode bounds the codes, kLargest what is left of them without the zero point, for kernels that add products in 16
// bits; signed codes lie in -128..127.
#pragma once

#include "../simd/simd.h"

namespace puna::PUNA_NS {

template <int MaxCode, int Zero>
struct UnsignedCodes {
  static constexpr int kMaxCode = MaxCode, kZero = Zero;
  static constexpr int kLargest = MaxCode - Zero > Zero ? MaxCode - Zero : Zero;
  static constexpr bool kSigned = false, kHasOffset = false, kSubScales = false, kSubMins = false;
};
struct SignedCodes {
  static constexpr int kZero = 0;
  static constexpr bool kSigned = true, kHasOffset = false, kSubScales = false, kSubMins = false;
};

inline constexpr int kPartBytes = 64 / kParts;

PUNA_INLINE bvec part_of(const uint8_t* vector, int p) { return bload(vector + kPartBytes * p); }

// Sixteen float16, one per row.
PUNA_INLINE fvec halves(const uint8_t* row_values, int p) {
  return nload_f16(reinterpret_cast<const uint16_t*>(row_values) + kNativeRows * p);
}
// Sixteen bytes, one per row, as floats.
PUNA_INLINE fvec unsigned_bytes(const uint8_t* row_values, int p) { return nload_u8(row_values + kNativeRows * p); }
PUNA_INLINE fvec signed_bytes(const uint8_t* row_values, int p) {
  return nload_i8(reinterpret_cast<const int8_t*>(row_values) + kNativeRows * p);
}

// a / 8: kernels have the sums of activations times -8 at hand.
PUNA_INLINE fvec eighth(fvec a) { return mul(a, nset1(0.125f)); }

// Code vector I of four nibble vectors: I < 4 the low nibbles, the high ones after.
template <int I>
PUNA_INLINE bvec nibbles(const uint8_t* vectors, int p) {
  const bvec both = part_of(vectors + 64 * (I % 4), p);
  if constexpr (I < 4) return band(both, bset1(0x0f));
  else return band(bshr<4>(both), bset1(0x0f));
}
// Bit `Bit` of code vector I, from a vector whose byte j holds it in bit I.
template <int I, int Bit>
PUNA_INLINE bvec one_bit(const uint8_t* vector, int p) {
  return band(bshr<I - Bit>(part_of(vector, p)), bset1(1 << Bit));
}
// Bits `Bit` and `Bit` + 1 of code vector I, from the two vectors that hold them for I = 0..3 and 4..7, two bits each.
template <int I, int Bit>
PUNA_INLINE bvec two_bits(const uint8_t* vectors, int p) {
  return band(bshr<2 * (I % 4) - Bit>(part_of(vectors + 64 * (I / 4), p)), bset1(3 << Bit));
}

// Asks for the bytes of a block that lies kPrefetchBytes further on in the weight stream.
template <int Bytes>
PUNA_INLINE void prefetch_block(const uint8_t* block) {
  if constexpr (kPrefetchBytes > 0) {
#pragma GCC unroll 9
    for (int line = 0; line < Bytes; line += 64) __builtin_prefetch(block + kPrefetchBytes + line);
  }
}

}  // namespace puna::PUNA_NS
