// SwiGLU, sums, factors and limits, column by column.
#include "ops/kernels.h"

#include "quant/a8.h"

namespace puna::PUNA_NS {

void swiglu(const SwigluArgs& args, int64_t row_begin, int64_t row_end, float* scratch) {
  const f32x16 one = set1(1.0f);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* gate = args.x + row * args.ldx;
    const float* up = gate + args.width;
    float* out = args.out != nullptr ? args.out + row * args.ldo : scratch;
    for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const f32x16 g = load_lanes(gate + c, lanes);
      const f32x16 silu = div(g, add(one, exp(neg(g))));
      store_lanes(out + c, mul(silu, load_lanes(up + c, lanes)), lanes);
    });
    if (args.a8 != nullptr) quantize_a8(out, args.width, row, 1, args.width, args.a8);
  }
}

void add_rows(const AddArgs& args, int64_t row_begin, int64_t row_end) {
  const f32x16 multiplier = set1(args.multiplier);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* a = args.a + row * args.lda;
    const float* b = args.b + row * args.ldb;
    float* out = args.out + row * args.ldo;
    for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store_lanes(out + c, fma(multiplier, load_lanes(b + c, lanes), load_lanes(a + c, lanes)), lanes);
    });
  }
}

void scale_rows(const ScaleArgs& args, int64_t row_begin, int64_t row_end) {
  const f32x16 factor = set1(args.factor);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* x = args.x + row * args.ldx;
    float* out = args.out + row * args.ldo;
    for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const f32x16 v = load_lanes(x + c, lanes);
      store_lanes(out + c, args.divide ? div(v, factor) : mul(v, factor), lanes);
    });
  }
}

void clamp_rows(const ClampArgs& args, int64_t row_begin, int64_t row_end) {
  float factor = 1.0f;
  __asm__("" : "+m"(factor));  // a product with what the compiler knows to be 1 would be left out
  const f32x16 high = set1(args.limit), low = set1(-args.limit), one = set1(factor);
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* x = args.x + row * args.ldx;
    for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      // The factor flushes subnormals: x86 does so in max and min, AArch64 only in arithmetic. The variable operand comes
      // second: it is what max and min return for a NaN.
      store_lanes(x + c, min(high, max(low, mul(load_lanes(x + c, lanes), one))), lanes);
    });
  }
}

}  // namespace puna::PUNA_NS
