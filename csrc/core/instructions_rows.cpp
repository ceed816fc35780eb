// Instructions that work row by row or move rows: add, scale, clamp, copy, gather_rows, copy_out, offsets_out.
#include <cstring>

#include "instruction.h"
#include "text.h"

namespace puna {
namespace {

constexpr int64_t kFloat = sizeof(float);

class Add final : public Instruction {
 public:
  explicit Add(FieldReader& fields)
      : a_(read_index(fields, "a")),
        b_(read_index(fields, "b")),
        out_(read_index(fields, "out")),
        width_(read_width(fields, "width")),
        multiplier_(read_float(fields, "multiplier")) {}

  void check(const Declarations& declarations, const Frame&, Needs&) const override {
    const Rows rows = check_floats(declarations, "a", a_, 0, width_);
    check_same_rows("a", rows, "b", check_floats(declarations, "b", b_, 0, width_));
    check_same_rows("a", rows, "out", check_floats(declarations, "out", out_, 0, width_));
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t elements = step.rows_of(a_) * width_;
    return {3 * elements * kFloat, 2 * elements};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(a_)}; }

  void run(const Step& step, const Frame&, const Worker& worker, const Part& part) const override {
    const AddArgs args = {step.floats_of(a_),   step.ld(a_),   step.floats_of(b_), step.ld(b_),
                          step.floats_of(out_), step.ld(out_), width_,             multiplier_};
    worker.kernels.add(args, part.begin, part.end);
  }

 private:
  int64_t a_, b_, out_, width_;
  float multiplier_;
};

class Scale final : public Instruction {
 public:
  explicit Scale(FieldReader& fields)
      : x_(read_index(fields, "x")),
        out_(read_index(fields, "out")),
        width_(read_width(fields, "width")),
        factor_(read_float(fields, "multiplier")),
        divide_(fields.flag("divide")) {
    if (divide_ && factor_ == 0) invalid(fields.owner(), ": field 'multiplier' must not be 0 to divide by it");
  }

  void check(const Declarations& declarations, const Frame&, Needs&) const override {
    const Rows rows = check_floats(declarations, "x", x_, 0, width_);
    check_same_rows("x", rows, "out", check_floats(declarations, "out", out_, 0, width_));
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t elements = step.rows_of(x_) * width_;
    return {2 * elements * kFloat, elements};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame&, const Worker& worker, const Part& part) const override {
    const ScaleArgs args = {step.floats_of(x_), step.ld(x_), step.floats_of(out_), step.ld(out_),
                            width_,             factor_,     divide_};
    worker.kernels.scale(args, part.begin, part.end);
  }

 private:
  int64_t x_, out_, width_;
  float factor_;
  bool divide_;
};

class Clamp final : public Instruction {
 public:
  explicit Clamp(FieldReader& fields)
      : x_(read_index(fields, "x")),
        col_(read_column(fields, "col")),
        width_(read_width(fields, "width")),
        limit_(read_float(fields, "limit")) {
    if (limit_ < 0) invalid(fields.owner(), ": field 'limit' must be 0 or more, got ", limit_);
  }

  void check(const Declarations& declarations, const Frame&, Needs&) const override {
    check_floats(declarations, "x", x_, col_, width_);
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t elements = step.rows_of(x_) * width_;
    return {2 * elements * kFloat, 2 * elements};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame&, const Worker& worker, const Part& part) const override {
    const ClampArgs args = {step.floats_of(x_) + col_, step.ld(x_), width_, limit_};
    worker.kernels.clamp(args, part.begin, part.end);
  }

 private:
  int64_t x_, col_, width_;
  float limit_;
};

class Softcap final : public Instruction {
 public:
  explicit Softcap(FieldReader& fields)
      : x_(read_index(fields, "x")),
        col_(read_column(fields, "col")),
        width_(read_width(fields, "width")),
        cap_(read_float(fields, "cap")) {
    if (!(cap_ > 0)) invalid(fields.owner(), ": field 'cap' must be more than 0, got ", cap_);
  }

  void check(const Declarations& declarations, const Frame&, Needs&) const override {
    check_floats(declarations, "x", x_, col_, width_);
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t elements = step.rows_of(x_) * width_;
    return {2 * elements * kFloat, 30 * elements};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame&, const Worker& worker, const Part& part) const override {
    const SoftcapArgs args = {step.floats_of(x_) + col_, step.ld(x_), width_, cap_};
    worker.kernels.softcap(args, part.begin, part.end);
  }

 private:
  int64_t x_, col_, width_;
  float cap_;
};

class Copy final : public Instruction {
 public:
  explicit Copy(FieldReader& fields)
      : x_(read_index(fields, "x")),
        col_(read_column(fields, "col")),
        out_(read_index(fields, "out")),
        out_col_(read_column(fields, "out_col")),
        width_(read_width(fields, "width")) {}

  void check(const Declarations& declarations, const Frame&, Needs&) const override {
    const Rows rows = check_floats(declarations, "x", x_, col_, width_);
    check_same_rows("x", rows, "out", check_floats(declarations, "out", out_, out_col_, width_));
  }

  Cost cost(const Step& step, const Frame&) const override { return {2 * step.rows_of(x_) * width_ * kFloat, 0}; }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame&, const Worker&, const Part& part) const override {
    for (int64_t row = part.begin; row < part.end; ++row) {
      std::memmove(step.floats_of(out_) + row * step.ld(out_) + out_col_,
                   step.floats_of(x_) + row * step.ld(x_) + col_, static_cast<size_t>(width_ * kFloat));
    }
  }

 private:
  int64_t x_, col_, out_, out_col_, width_;
};

class GatherRows final : public Instruction {
 public:
  explicit GatherRows(FieldReader& fields)
      : x_(read_index(fields, "x")),
        out_(read_index(fields, "out")),
        width_(read_width(fields, "width")),
        is_last_(fields.choice("mode", {"last", "variable"}) == 0) {}

  void check(const Declarations& declarations, const Frame&, Needs& needs) const override {
    check_distinct("x", x_, "out", out_);
    if (check_floats(declarations, "x", x_, 0, width_) != Rows::T) invalid("'x' must have rows T");
    const Rows rows = check_floats(declarations, "out", out_, 0, width_);
    if (rows != (is_last_ ? Rows::B : Rows::R)) invalid("'out' must have rows ", is_last_ ? "B" : "R");
    (is_last_ ? needs.last_rows : needs.count) = true;
  }

  Cost cost(const Step& step, const Frame&) const override { return {2 * step.rows_of(out_) * width_ * kFloat, 0}; }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(out_)}; }

  void run(const Step& step, const Frame&, const Worker&, const Part& part) const override {
    const int64_t per_request = is_last_ ? 1 : step.n;
    for (int64_t row = part.begin; row < part.end; ++row) {
      const int64_t request = row / per_request, rest = per_request - row % per_request;
      const int64_t source = int64_t{step.offsets[static_cast<size_t>(request) + 1]} - rest;
      std::memcpy(step.floats_of(out_) + row * step.ld(out_), step.floats_of(x_) + source * step.ld(x_),
                  static_cast<size_t>(width_ * kFloat));
    }
  }

 private:
  int64_t x_, out_, width_;
  bool is_last_;
};

class CopyOut final : public Instruction {
 public:
  explicit CopyOut(FieldReader& fields)
      : x_(read_index(fields, "x")),
        col_(read_column(fields, "col")),
        width_(read_width(fields, "width")),
        output_(fields.integer("output", 0, kMaxOutputs - 1)),
        out_col_(read_column(fields, "out_col")),
        rows_(static_cast<Rows>(fields.choice("rows", {"T", "B", "R"}))) {}

  void check(const Declarations& declarations, const Frame&, Needs& needs) const override {
    check_same_rows("rows", rows_, "x", check_floats(declarations, "x", x_, col_, width_));
    need_columns(needs, output_, rows_, out_col_ + width_);
  }

  Cost cost(const Step& step, const Frame&) const override { return {2 * step.rows_of(x_) * width_ * kFloat, 0}; }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame&, const Worker&, const Part& part) const override {
    const ArrayView& output = step.outputs[static_cast<size_t>(output_)];
    for (int64_t row = part.begin; row < part.end; ++row) {
      std::memcpy(output.data + (row * output.shape[1] + out_col_) * kFloat,
                  step.floats_of(x_) + row * step.ld(x_) + col_, static_cast<size_t>(width_ * kFloat));
    }
  }

 private:
  int64_t x_, col_, width_, output_, out_col_;
  Rows rows_;
};

class OffsetsOut final : public Instruction {
 public:
  explicit OffsetsOut(FieldReader& fields)
      : output_(fields.integer("output", 0, kMaxOutputs - 1)),
        is_variable_(fields.choice("mode", {"variable", "all"}) == 0) {}

  void check(const Declarations&, const Frame&, Needs& needs) const override {
    need_offsets(needs, output_, is_variable_ ? ElementType::i64 : ElementType::u32);
    if (is_variable_) needs.count = true;
  }

  Cost cost(const Step& step, const Frame&) const override { return {(step.B + 1) * (is_variable_ ? 8 : 4), 0}; }

  Work work(const Step&, const Frame&, int) const override { return {1}; }

  void run(const Step& step, const Frame&, const Worker&, const Part&) const override {
    uint8_t* data = step.outputs[static_cast<size_t>(output_)].data;
    if (!is_variable_) {
      std::memcpy(data, step.offsets.data(), step.offsets.size() * sizeof(uint32_t));
      return;
    }
    for (int64_t b = 0; b <= step.B; ++b) {
      const int64_t offset = b * step.n;
      std::memcpy(data + b * 8, &offset, sizeof offset);
    }
  }

 private:
  int64_t output_;
  bool is_variable_;
};

template <typename T>
std::unique_ptr<const Instruction> make(FieldReader& fields) {
  return std::make_unique<T>(fields);
}

}  // namespace

std::unique_ptr<const Instruction> make_add(FieldReader& fields) { return make<Add>(fields); }
std::unique_ptr<const Instruction> make_scale(FieldReader& fields) { return make<Scale>(fields); }
std::unique_ptr<const Instruction> make_softcap(FieldReader& fields) { return make<Softcap>(fields); }
std::unique_ptr<const Instruction> make_clamp(FieldReader& fields) { return make<Clamp>(fields); }
std::unique_ptr<const Instruction> make_copy(FieldReader& fields) { return make<Copy>(fields); }
std::unique_ptr<const Instruction> make_gather_rows(FieldReader& fields) { return make<GatherRows>(fields); }
std::unique_ptr<const Instruction> make_copy_out(FieldReader& fields) { return make<CopyOut>(fields); }
std::unique_ptr<const Instruction> make_offsets_out(FieldReader& fields) { return make<OffsetsOut>(fields); }

}  // namespace puna
