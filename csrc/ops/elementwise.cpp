// Gated activations, sums, factors and limits, column by column.
#include "ops/kernels.h"

#include "quant/a8.h"

namespace puna::PUNA_NS {

namespace {

// The share of a gate that passes: 1 / (1 + exp(-x)), with x the gate or, for the approximation of GELU by tanh,
// 2·sqrt(2/pi)·(gate + 0.044715·gate³).
template <Activation activation>
PUNA_INLINE f32x16 activated(f32x16 gate) {
  f32x16 x = gate;
  if constexpr (activation == Activation::gelu_tanh) {
    const f32x16 inner = fma(mul(gate, gate), set1(0.044715f), set1(1.0f));
    x = mul(mul(gate, inner), set1(0x1.988454p+0f));
  }
  return div(gate, add(set1(1.0f), exp(neg(x))));
}

template <Activation activation>
void glu_rows(const GluArgs& args, int64_t row_begin, int64_t row_end, float* scratch) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* gate = args.x + row * args.ldx;
    const float* up = gate + args.width;
    float* out = args.out != nullptr ? args.out + row * args.ldo : scratch;
    for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      const f32x16 passed = activated<activation>(load_lanes(gate + c, lanes));
      store_lanes(out + c, mul(passed, load_lanes(up + c, lanes)), lanes);
    });
    if (args.a8 != nullptr) quantize_a8(out, args.width, row, 1, args.width, args.a8);
  }
}

}  // namespace

void glu(const GluArgs& args, int64_t row_begin, int64_t row_end, float* scratch) {
  const auto run = args.activation == Activation::silu ? glu_rows<Activation::silu> : glu_rows<Activation::gelu_tanh>;
  run(args, row_begin, row_end, scratch);
}

void softcap_rows(const SoftcapArgs& args, int64_t row_begin, int64_t row_end) {
  const f32x16 cap = set1(args.cap);
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* x = args.x + row * args.ldx;
    for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store_lanes(x + c, mul(cap, tanh(div(load_lanes(x + c, lanes), cap))), lanes);
    });
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
