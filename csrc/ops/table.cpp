// What this variant exports.
#include "simd/simd.h"  // first: it names the variant for the others

#include "core/kernel_table.h"
#include "quant/a8.h"

namespace puna::PUNA_NS {

#define PUNA_TEXT_(name) #name
#define PUNA_TEXT(name) PUNA_TEXT_(name)

extern const KernelTable kTable;
const KernelTable kTable = {
    .name = PUNA_TEXT(PUNA_NS),
    .quantize_a8 = quantize_a8,
    .matmul = nullptr,
    .matmul_scratch_floats = nullptr,
    .norm = nullptr,
    .swiglu = nullptr,
    .add = nullptr,
    .scale = nullptr,
    .clamp = nullptr,
    .rope_kv = nullptr,
    .attention_scratch_floats = nullptr,
    .attention = nullptr,
    .attention_combine = nullptr,
};

}  // namespace puna::PUNA_NS
