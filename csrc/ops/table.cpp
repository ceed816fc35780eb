// What this variant exports.
#include "ops/kernels.h"

#include "ops/matmul.h"
#include "quant/a8.h"

namespace puna::PUNA_NS {

#define PUNA_TEXT_(name) #name
#define PUNA_TEXT(name) PUNA_TEXT_(name)

extern const KernelTable kTable;
const KernelTable kTable = {
    .name = PUNA_TEXT(PUNA_NS),
    .quantize_a8 = quantize_a8,
    .matmul = matmul,
    .matmul_scratch_floats = matmul_scratch_floats,
    .norm = norm,
    .glu = glu,
    .add = add_rows,
    .scale = scale_rows,
    .clamp = clamp_rows,
    .softcap = softcap_rows,
    .rope_kv = rope_kv,
    .attention = attention,
    .attention_split = attention_split,
    .attention_combine = attention_combine,
    .attention_scratch_floats = attention_scratch_floats,
    .quantize_a8_two_terms = quantize_a8_two_terms,
    .quantize = quantize,
    .float_peak = float_peak,
    .int8_peak = int8_peak,
};

}  // namespace puna::PUNA_NS
