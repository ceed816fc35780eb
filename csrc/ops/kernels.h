// The kernels of this variant, one line each; what they take is documented in core/kernel_table.h.
#pragma once

#include "simd/simd.h"  // first: it names the variant for the others

#include "core/kernel_table.h"

namespace puna::PUNA_NS {

void norm(const NormArgs& args, int64_t row_begin, int64_t row_end, float* scratch);
void glu(const GluArgs& args, int64_t row_begin, int64_t row_end, float* scratch);
void add_rows(const AddArgs& args, int64_t row_begin, int64_t row_end);
void scale_rows(const ScaleArgs& args, int64_t row_begin, int64_t row_end);
void softcap_rows(const SoftcapArgs& args, int64_t row_begin, int64_t row_end);
void clamp_rows(const ClampArgs& args, int64_t row_begin, int64_t row_end);
void rope_kv(const RopeKvArgs& args, int64_t row_begin, int64_t row_end);
void attention(const AttentionArgs& args, const AttentionTile& tile, float* scratch);
void attention_split(const AttentionArgs& args, const AttentionTile& tile, float* scratch, float* states);
void attention_combine(const AttentionArgs& args, const AttentionTile& tile, float* states);
int64_t attention_scratch_floats(const AttentionArgs& args);
void quantize(const QuantizeArgs& args, int64_t block_begin, int64_t block_end);
int64_t float_peak(int64_t repeats, float* out);
int64_t int8_peak(int64_t repeats, float* out);

// Calls f(column, lanes) for every group of 16 columns, `lanes` below 16 only in the last.
template <typename F>
PUNA_INLINE void for_columns(int64_t width, F f) {
  int64_t c = 0;
  for (; c + 16 <= width; c += 16) f(c, 16);
  if (c < width) f(c, static_cast<int>(width - c));
}
PUNA_INLINE f32x16 load_lanes(const float* p, int lanes) { return lanes == 16 ? load(p) : load_n(p, lanes); }
PUNA_INLINE void store_lanes(float* p, f32x16 a, int lanes) {
  if (lanes == 16) {
    store(p, a);
  } else {
    store_n(p, a, lanes);
  }
}

}  // namespace puna::PUNA_NS
