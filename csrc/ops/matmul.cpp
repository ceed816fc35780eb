#include "matmul.h"

namespace puna::PUNA_NS {

void finish_tile(const MatmulArgs& args, int64_t panel, int64_t first_row, int64_t rows, const float* acc) {
  const int64_t column = panel * kPanelRows;
  const int lanes = static_cast<int>(args.rows - column < kPanelRows ? args.rows - column : kPanelRows);
  const f32x16 bias = args.bias != nullptr ? load_n(args.bias + column, lanes) : zero();
  const f32x16 clip = set1(args.clip), multiplier = set1(args.multiplier);
  for (int64_t row = 0; row < rows; ++row) {
    f32x16 y = load(acc + kPanelRows * row);
    if (args.bias != nullptr) y = add(y, bias);
    if (args.clip > 0.0f) y = min(clip, max(neg(clip), y));
    if (args.residual != nullptr) {
      y = fma(multiplier, y, load_n(args.residual + (first_row + row) * args.ldr + column, lanes));
    } else if (args.multiplier != 1.0f) {
      y = mul(multiplier, y);
    }
    float* out = args.out + (first_row + row) * args.ldo + column;
    if (lanes == kPanelRows) store(out, y);
    else store_n(out, y, lanes);
  }
}

void matmul(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch) {
  switch (args.kernel) {
    case Kernel::bf16:
#ifdef PUNA_HAS_TILES
      tiled_bf16_product(args, panel_begin, panel_end, scratch);
      return;
#endif
    case Kernel::stored:
    case Kernel::f32:
    case Kernel::f16:
    case Kernel::bf16_exact:
      float_product(args, panel_begin, panel_end, scratch);
      return;
    default:
#ifdef PUNA_HAS_TILES
      if (takes_tiles(args)) {
        tiled_integer_product(args, panel_begin, panel_end, scratch);
        return;
      }
#endif
      integer_product(args, panel_begin, panel_end);
  }
}

int64_t matmul_scratch_floats(const MatmulArgs& args) {
  switch (args.kernel) {
    case Kernel::bf16:
#ifdef PUNA_HAS_TILES
      return tiled_scratch_floats(args);
#endif
    case Kernel::stored:
    case Kernel::f32:
    case Kernel::f16:
    case Kernel::bf16_exact:
      return float_scratch_floats(args);
    default:
#ifdef PUNA_HAS_TILES
      if (takes_tiles(args)) return tiled_scratch_floats(args);
#endif
      return 0;
  }
}

}  // namespace puna::PUNA_NS
