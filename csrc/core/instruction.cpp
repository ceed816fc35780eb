#include "instruction.h"

#include <cmath>

#include "../quant/a8.h"
#include "text.h"

namespace puna {
namespace {

struct Maker {
  const char* op;
  std::unique_ptr<const Instruction> (*make)(FieldReader&);
};

constexpr Maker kMakers[] = {
    {"embed", make_embed},
    {"norm", make_norm},
    {"head_norm", make_head_norm},
    {"quantize", make_quantize},
    {"matmul", make_matmul},
    {"matmul_out", make_matmul_out},
    {"glu", make_glu},
    {"lora", make_lora},
    {"lora_embed", make_lora_embed},
    {"add", make_add},
    {"scale", make_scale},
    {"clamp", make_clamp},
    {"softcap", make_softcap},
    {"copy", make_copy},
    {"rope_angles", make_rope_angles},
    {"rope_kv", make_rope_kv},
    {"attention", make_attention},
    {"gather_rows", make_gather_rows},
    {"copy_out", make_copy_out},
    {"offsets_out", make_offsets_out},
};

const BufferInfo& check_buffer(const Declarations& declarations, const char* name, int64_t buffer) {
  if (buffer < 0 || buffer >= static_cast<int64_t>(declarations.buffers.size())) {
    invalid("'", name, "' is buffer ", buffer, ", the program has ", declarations.buffers.size());
  }
  return declarations.buffers[static_cast<size_t>(buffer)];
}

const Weight& check_weight(const Declarations& declarations, const Frame& frame, const char* name, int64_t index) {
  const int64_t absolute = frame.weight_base + index;
  if (index < 0 || absolute >= static_cast<int64_t>(declarations.weights.size())) {
    invalid("'", name, "' is weight ", absolute, ", the program has ", declarations.weights.size());
  }
  return declarations.weights[static_cast<size_t>(absolute)];
}

OutputNeed& need_output(Needs& needs, int64_t output) {
  if (needs.outputs.size() <= static_cast<size_t>(output)) needs.outputs.resize(static_cast<size_t>(output) + 1);
  return needs.outputs[static_cast<size_t>(output)];
}

}  // namespace

std::unique_ptr<const Instruction> make_instruction(const std::string& op, FieldReader& fields) {
  std::string names;
  for (const Maker& maker : kMakers) {
    if (op == maker.op) return maker.make(fields);
    names += std::string(maker.op) + ", ";
  }
  invalid("unknown instruction '", op, "'; there is: ", names, "call");
}

float read_float(FieldReader& fields, const std::string& name) {
  const float value = static_cast<float>(fields.number(name));
  if (!std::isfinite(value)) invalid(fields.owner(), ": field '", name, "' must be a finite float32");
  return value;
}

Rows check_floats(const Declarations& declarations, const char* name, int64_t buffer, int64_t column,
                  int64_t columns) {
  const BufferInfo& info = check_buffer(declarations, name, buffer);
  if (column + columns > info.row_bytes / 4) {
    invalid("'", name, "' needs columns ", column, " to ", column + columns, " of buffer ", buffer, ", which has ",
            info.row_bytes / 4);
  }
  return info.rows;
}

Rows check_a8(const Declarations& declarations, const char* name, int64_t buffer, int64_t columns, bool two_terms) {
  const BufferInfo& info = check_buffer(declarations, name, buffer);
  if (columns % kA8BlockElements != 0) invalid("'", name, "' holds blocks of 32 values, not ", columns, " values");
  const int64_t needed = a8_row_bytes(columns) * (two_terms ? 2 : 1);
  if (needed > info.row_bytes) {
    invalid("'", name, "' needs rows of ", needed, " bytes, those of buffer ", buffer, " have ", info.row_bytes);
  }
  return info.rows;
}

void check_same_rows(const char* first_name, Rows first, const char* second_name, Rows second) {
  if (first != second) {
    invalid("'", first_name, "' has rows ", rows_name(first), ", '", second_name, "' has ", rows_name(second));
  }
}

void check_distinct(const char* first_name, int64_t first, const char* second_name, int64_t second) {
  if (first >= 0 && first == second) invalid("'", first_name, "' and '", second_name, "' are both buffer ", first);
}

void need_columns(Needs& needs, int64_t output, Rows rows, int64_t columns) {
  OutputNeed& need = need_output(needs, output);
  if (need.is_used && (need.is_offsets || need.rows != rows)) {
    invalid("output ", output, " is something else already");
  }
  need.is_used = true;
  need.rows = rows;
  need.type = ElementType::f32;
  need.width = std::max(need.width, columns);
}

void need_offsets(Needs& needs, int64_t output, ElementType type) {
  OutputNeed& need = need_output(needs, output);
  if (need.is_used) invalid("output ", output, " is something else already");
  need.is_used = need.is_offsets = true;
  need.type = type;
}

const PackedMatrix& check_matrix(const Declarations& declarations, const Frame& frame, const char* name,
                                 int64_t index) {
  const Weight& weight = check_weight(declarations, frame, name, index);
  if (weight.matrix == nullptr) invalid("'", name, "' must be a matrix, weight ", frame.weight_base + index, " is a vector");
  return *weight.matrix;
}

void check_vector(const Declarations& declarations, const Frame& frame, const char* name, int64_t index,
                  int64_t length) {
  const Weight& weight = check_weight(declarations, frame, name, index);
  if (weight.matrix != nullptr) {
    invalid("'", name, "' must be a vector, weight ", frame.weight_base + index, " is a matrix");
  }
  if (static_cast<int64_t>(weight.vector.size()) != length) {
    invalid("'", name, "' must have ", length, " values, weight ", frame.weight_base + index, " has ",
            weight.vector.size());
  }
}

}  // namespace puna
