// The table of formats.
#include "format.h"

#include <string.h>

#include "float_formats.h"
#include "fp4.h"
#include "iq1.h"
#include "iq2_iq3.h"
#include "iq4.h"
#include "q2_q3_k.h"
#include "q4.h"
#include "q4_q5_k.h"
#include "q5.h"
#include "q6_k.h"
#include "q8.h"
#include "ternary.h"

namespace puna {
namespace {

template <class F>
void dequantize(const uint8_t* blocks, int64_t elements, float* out) {
  for (int64_t k = 0; k < elements; k += F::kElements, blocks += F::kBytes) F::dequantize(blocks, out + k);
}

template <class F>
void pack_row(const uint8_t* blocks, int64_t elements, uint8_t* panel, int row) {
  for (int64_t k = 0; k < elements; k += F::kUnitElements, panel += F::kUnitBytes) {
    for (int sub = 0; sub * F::kElements < F::kUnitElements && k + sub * F::kElements < elements; ++sub) {
      F::pack(blocks, panel, sub, row);
      blocks += F::kBytes;
    }
  }
}

template <class F>
void unpack_row(const uint8_t* panel, int64_t elements, int row, uint8_t* blocks) {
  for (int64_t k = 0; k < elements; k += F::kUnitElements, panel += F::kUnitBytes) {
    for (int sub = 0; sub * F::kElements < F::kUnitElements && k + sub * F::kElements < elements; ++sub) {
      F::unpack(panel, sub, row, blocks);
      blocks += F::kBytes;
    }
  }
}

template <class F>
constexpr auto encoder() -> void (*)(const BlockParts&, uint8_t*) {
  if constexpr (requires { F::encode; }) return F::encode;
  return nullptr;
}

template <class F>
constexpr Format packed(const char* name, int32_t ggml_type, Kernel kernel) {
  return {name,   ggml_type, F::kElements,     F::kBytes,     dequantize<F>, encoder<F>(),
          kernel, F::kUnitElements, F::kUnitBytes, pack_row<F>, unpack_row<F>};
}

template <class F>
constexpr Format stored(const char* name, int32_t ggml_type) {
  return {name,           ggml_type, F::kElements, F::kBytes, dequantize<F>, nullptr,
          Kernel::stored, 0,         0,            nullptr,   nullptr};
}

constexpr Format kFormats[] = {
    packed<quant::F32>("F32", 0, Kernel::f32),
    packed<quant::F16>("F16", 1, Kernel::f16),
    packed<quant::Q4_0>("Q4_0", 2, Kernel::q4_0),
    packed<quant::Q4_1>("Q4_1", 3, Kernel::q4_1),
    packed<quant::Q5_0>("Q5_0", 6, Kernel::q5_0),
    packed<quant::Q5_1>("Q5_1", 7, Kernel::q5_1),
    packed<quant::Q8_0>("Q8_0", 8, Kernel::q8_0),
    packed<quant::Q2_K>("Q2_K", 10, Kernel::q2_k),
    packed<quant::Q3_K>("Q3_K", 11, Kernel::q3_k),
    packed<quant::Q4_K>("Q4_K", 12, Kernel::q4_k),
    packed<quant::Q5_K>("Q5_K", 13, Kernel::q5_k),
    packed<quant::Q6_K>("Q6_K", 14, Kernel::q6_k),
    stored<quant::Q8_K>("Q8_K", 15),
    stored<quant::IQ2_XXS>("IQ2_XXS", 16),
    stored<quant::IQ2_XS>("IQ2_XS", 17),
    stored<quant::IQ3_XXS>("IQ3_XXS", 18),
    stored<quant::IQ1_S>("IQ1_S", 19),
    packed<quant::IQ4_NL>("IQ4_NL", 20, Kernel::iq4_nl),
    stored<quant::IQ3_S>("IQ3_S", 21),
    stored<quant::IQ2_S>("IQ2_S", 22),
    packed<quant::IQ4_XS>("IQ4_XS", 23, Kernel::iq4_xs),
    stored<quant::IQ1_M>("IQ1_M", 29),
    packed<quant::BF16>("BF16", 30, Kernel::bf16),
    stored<quant::TQ1_0>("TQ1_0", 34),
    stored<quant::TQ2_0>("TQ2_0", 35),
    packed<quant::MXFP4>("MXFP4", 39, Kernel::mxfp4),
    stored<quant::NVFP4>("NVFP4", 40),
};

}  // namespace

FormatList formats() { return {kFormats, kFormats + sizeof kFormats / sizeof kFormats[0]}; }

const Format* find_format(const char* name) {
  for (const Format& format : formats()) {
    if (strcmp(format.name, name) == 0) return &format;
  }
  return nullptr;
}

Partner partner_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::stored:
    case Kernel::f32:
    case Kernel::f16:
    case Kernel::bf16:
    case Kernel::bf16_exact:
      return Partner::f32;
    default:
      return Partner::a8;
  }
}

Kernel kernel_for(const Format& format, bool full_precision) {
  if (!full_precision) return format.kernel;
  if (format.kernel == Kernel::bf16) return Kernel::bf16_exact;
  return partner_of(format.kernel) == Partner::a8 ? Kernel::stored : format.kernel;
}

}  // namespace puna
