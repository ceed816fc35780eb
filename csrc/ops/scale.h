// Values as integer codes with one scale.
#pragma once

#include "ops/kernels.h"

namespace puna::PUNA_NS {
namespace {

// The largest absolute value of n floats (a multiple of 16), infinite or NaN if one of them is.
[[maybe_unused]] PUNA_INLINE float largest_of(const float* x, int64_t n) {
  i32x16 top = set1_i32(0);  // as integers the bit patterns of absolute values are ordered, NaN above infinity
  for (int64_t i = 0; i < n; i += 16) top = max_i32(top, as_i32(abs(load(x + i))));
  return __builtin_bit_cast(float, reduce_max_i32(top));
}

// The scale d of values up to `largest`, codes up to `codes`, and what values are multiplied with: 1 / d, or zero where d
// is NaN (a value was infinite or NaN) or below the smallest normal float, and then zero.
struct Scale {
  float d, inverse;
  Scale(float largest, float codes) : d(largest / codes), inverse(1.0f / d) {
    if (!(largest < __builtin_inff())) d = __builtin_nanf("");
    else if (d < 0x1p-126f) d = 0.0f;
    if (!(d > 0.0f)) inverse = 0.0f;
  }
  [[gnu::always_inline]] i32x16 code(f32x16 x) const {
    return inverse == 0.0f ? set1_i32(0) : round_i32(mul(x, set1(inverse)));
  }
};

}  // namespace
}  // namespace puna::PUNA_NS
