// RMS and layer normalization of rows, with the rounding of the result to int8 where a product takes it so.
//
// Sums run over lanes (column mod 16), ascending, and end in the fixed tree of reduce_add.
#include "ops/kernels.h"

#include "quant/a8.h"

namespace puna::PUNA_NS {
namespace {

// 1 / sqrt(mean of squares + eps).
float inverse_rms(const float* x, int64_t width, float eps) {
  f32x16 squares = zero();
  for_columns(width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    const f32x16 v = load_lanes(x + c, lanes);
    squares = fma(v, v, squares);
  });
  const float mean = reduce_add(squares) / static_cast<float>(width);
  return 1.0f / __builtin_sqrtf(mean + eps);
}

void rms_row(const NormArgs& args, const float* x, float* out) {
  const f32x16 inverse = set1(inverse_rms(x, args.width, args.eps));
  for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    f32x16 y = mul(load_lanes(x + c, lanes), inverse);
    if (args.weight != nullptr) y = mul(y, load_lanes(args.weight + c, lanes));
    store_lanes(out + c, y, lanes);
  });
}

void layer_row(const NormArgs& args, const float* x, float* out) {
  const float width = static_cast<float>(args.width);
  f32x16 sum = zero();
  for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    sum = add(sum, load_lanes(x + c, lanes));
  });
  const f32x16 mean = set1(reduce_add(sum) / width);
  f32x16 squares = zero();
  for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    f32x16 d = sub(load_lanes(x + c, lanes), mean);
    if (lanes < 16) {  // the columns that do not exist must not count
      float kept[16];
      store(kept, d);
      d = load_n(kept, lanes);
    }
    squares = fma(d, d, squares);
  });
  const f32x16 inverse = set1(1.0f / __builtin_sqrtf(reduce_add(squares) / width + args.eps));
  for_columns(args.width, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    f32x16 y = mul(sub(load_lanes(x + c, lanes), mean), inverse);
    if (args.weight != nullptr) y = mul(y, load_lanes(args.weight + c, lanes));
    if (args.bias != nullptr) y = add(y, load_lanes(args.bias + c, lanes));
    store_lanes(out + c, y, lanes);
  });
}

}  // namespace

void norm(const NormArgs& args, int64_t row_begin, int64_t row_end, float* scratch) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* out = args.out != nullptr ? args.out + row * args.ldo : scratch;
    if (args.kind == NormKind::rms) {
      rms_row(args, args.x + row * args.ldx, out);
    } else {
      layer_row(args, args.x + row * args.ldx, out);
    }
    if (args.a8 != nullptr) quantize_a8(out, args.width, row, 1, args.width, args.a8);
  }
}

}  // namespace puna::PUNA_NS
