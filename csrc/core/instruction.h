// Instructions of a program. Each reads its fields once, is checked once for each call it runs in, and then runs piece
// by piece in whichever threads are free; the next one begins when all its pieces are done.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "declarations.h"
#include "fields.h"
#include "step.h"
#include "worker.h"

namespace puna {

// Where a call stands: weights of instructions count from weight_base, layers of the cache from layer.
struct Frame {
  int64_t weight_base = 0;
  int64_t layer = 0;
};

// What an instruction moves and computes in a step.
struct Cost {
  int64_t bytes = 0;
  int64_t flops = 0;
};

// A part of an instruction's work. Most have one phase; a phase begins when the one before it is done.
struct Part {
  int phase;
  int64_t begin, end;  // of the phase's units
};

class Instruction {
 public:
  virtual ~Instruction() = default;

  // Throws std::invalid_argument when buffers, widths or weights do not fit; notes what it needs of inputs and outputs.
  virtual void check(const Declarations& declarations, const Frame& frame, Needs& needs) const = 0;
  virtual Cost cost(const Step& step, const Frame& frame) const = 0;
  // Where the weights of a unit begin, which come from memory one unit after the other; null where there are none.
  virtual const uint8_t* stream(const Step&, const Frame&, int64_t /*unit*/) const { return nullptr; }
  // Scratch memory of each thread.
  virtual int64_t scratch_floats(const Step&, const Frame&, const KernelTable&) const { return 0; }
  virtual int phases(const Step&) const { return 1; }
  // Of a phase; `least` is found from the cost.
  virtual Work work(const Step& step, const Frame& frame, int phase) const = 0;
  virtual void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const = 0;
};

// The instruction of this name with these fields. Throws std::invalid_argument.
std::unique_ptr<const Instruction> make_instruction(const std::string& op, FieldReader& fields);

// One maker per instruction, in the files instructions_*.cpp.
std::unique_ptr<const Instruction> make_embed(FieldReader& fields);
std::unique_ptr<const Instruction> make_norm(FieldReader& fields);
std::unique_ptr<const Instruction> make_head_norm(FieldReader& fields);
std::unique_ptr<const Instruction> make_quantize(FieldReader& fields);
std::unique_ptr<const Instruction> make_matmul(FieldReader& fields);
std::unique_ptr<const Instruction> make_matmul_out(FieldReader& fields);
std::unique_ptr<const Instruction> make_glu(FieldReader& fields);
std::unique_ptr<const Instruction> make_lora(FieldReader& fields);
std::unique_ptr<const Instruction> make_lora_embed(FieldReader& fields);
std::unique_ptr<const Instruction> make_add(FieldReader& fields);
std::unique_ptr<const Instruction> make_scale(FieldReader& fields);
std::unique_ptr<const Instruction> make_softcap(FieldReader& fields);
std::unique_ptr<const Instruction> make_clamp(FieldReader& fields);
std::unique_ptr<const Instruction> make_copy(FieldReader& fields);
std::unique_ptr<const Instruction> make_rope_angles(FieldReader& fields);
std::unique_ptr<const Instruction> make_rope_kv(FieldReader& fields);
std::unique_ptr<const Instruction> make_attention(FieldReader& fields);
std::unique_ptr<const Instruction> make_gather_rows(FieldReader& fields);
std::unique_ptr<const Instruction> make_copy_out(FieldReader& fields);
std::unique_ptr<const Instruction> make_offsets_out(FieldReader& fields);

// ---- operands -------------------------------------------------------------------------------------------------------

inline constexpr int64_t kMaxWidth = int64_t{1} << 31;  // columns of anything
inline constexpr int64_t kMaxIndex = 1 << 30;           // buffers, weights, layers
inline constexpr int64_t kMaxOutputs = 64;

// A required buffer or weight; and one that may be absent (-1).
inline int64_t read_index(FieldReader& fields, const std::string& name) { return fields.integer(name, 0, kMaxIndex); }
inline int64_t read_optional(FieldReader& fields, const std::string& name) {
  return fields.integer(name, -1, kMaxIndex);
}
inline int64_t read_width(FieldReader& fields, const std::string& name) { return fields.integer(name, 1, kMaxWidth); }
inline int64_t read_column(FieldReader& fields, const std::string& name) { return fields.integer(name, 0, kMaxWidth); }
float read_float(FieldReader& fields, const std::string& name);

// `columns` float32 columns from `column` on must lie within the buffer, which must exist. Returns its rows.
Rows check_floats(const Declarations& declarations, const char* name, int64_t buffer, int64_t column, int64_t columns);
// Likewise for a row of `columns` values as int8, a multiple of 32.
Rows check_a8(const Declarations& declarations, const char* name, int64_t buffer, int64_t columns, bool two_terms = false);
void check_same_rows(const char* first_name, Rows first, const char* second_name, Rows second);
void check_distinct(const char* first_name, int64_t first, const char* second_name, int64_t second);
// An instruction writes float32 columns up to `columns` of this output, or offsets of this type.
void need_columns(Needs& needs, int64_t output, Rows rows, int64_t columns);
void need_offsets(Needs& needs, int64_t output, ElementType type);
// Weight `frame.weight_base + index` must be a matrix, or a vector of this length.
const PackedMatrix& check_matrix(const Declarations& declarations, const Frame& frame, const char* name, int64_t index);
void check_vector(const Declarations& declarations, const Frame& frame, const char* name, int64_t index,
                  int64_t length);

// The values of an optional weight vector, or null.
inline const float* vector_or_null(const Step& step, const Frame& frame, int64_t index) {
  return index < 0 ? nullptr : step.weight(frame.weight_base + index).vector.data();
}
inline float* floats_or_null(const Step& step, int64_t buffer) {
  return buffer < 0 ? nullptr : step.floats_of(buffer);
}
inline uint8_t* bytes_or_null(const Step& step, int64_t buffer) {
  return buffer < 0 ? nullptr : step.bytes_of(buffer);
}
inline int64_t ld_or_zero(const Step& step, int64_t buffer) { return buffer < 0 ? 0 : step.ld(buffer); }

}  // namespace puna
