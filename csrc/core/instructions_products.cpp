// Instructions around matrix products: embed, norm, quantize, matmul, glu.
#include <array>

#include "../quant/a8.h"
#include "instruction.h"
#include "product.h"
#include "text.h"

namespace puna {
namespace {

constexpr int64_t kFloat = sizeof(float);

class Embed final : public Instruction {
 public:
  explicit Embed(FieldReader& fields)
      : weight_(read_index(fields, "weight")), out_(read_index(fields, "out")), scale_(read_float(fields, "scale")) {}

  void check(const Declarations& declarations, const Frame& frame, Needs& needs) const override {
    const PackedMatrix& matrix = check_matrix(declarations, frame, "weight", weight_);
    const Rows rows = check_floats(declarations, "out", out_, 0, matrix.cols());
    if (rows != Rows::T) invalid("'out' must have rows T");
    needs.vocabulary = needs.tokens ? std::min(needs.vocabulary, matrix.rows()) : matrix.rows();
    needs.tokens = true;
  }

  Cost cost(const Step& step, const Frame& frame) const override {
    const PackedMatrix& matrix = *step.weight(frame.weight_base + weight_).matrix;
    return {step.T * (matrix.row_bytes() + matrix.cols() * kFloat), step.T * matrix.cols()};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.T}; }

  void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const override {
    const PackedMatrix& matrix = *step.weight(frame.weight_base + weight_).matrix;
    const int64_t ld = step.ld(out_), cols = matrix.cols();
    float* out = step.floats_of(out_);
    for (int64_t row = part.begin; row < part.end; ++row) {
      matrix.row_f32(step.tokens[static_cast<size_t>(row)], out + row * ld);
    }
    if (scale_ == 1.0f) return;
    worker.kernels.scale({out, ld, out, ld, cols, scale_, false}, part.begin, part.end);
  }

 private:
  int64_t weight_, out_;
  float scale_;
};

class Norm final : public Instruction {
 public:
  explicit Norm(FieldReader& fields)
      : x_(read_index(fields, "x")),
        out_(read_optional(fields, "out")),
        out_a8_(read_optional(fields, "out_a8")),
        kind_(fields.choice("kind", {"rms", "layer"}) == 0 ? NormKind::rms : NormKind::layer),
        eps_(read_float(fields, "eps")),
        weight_(read_optional(fields, "weight")),
        bias_(read_optional(fields, "bias")),
        width_(read_width(fields, "width")) {
    if (eps_ < 0) invalid(fields.owner(), ": field 'eps' must be 0 or more, got ", eps_);
    if (out_ < 0 && out_a8_ < 0) invalid(fields.owner(), ": one of 'out' and 'out_a8' must be a buffer");
    if (kind_ == NormKind::rms && bias_ >= 0) invalid(fields.owner(), ": kind 'rms' has no 'bias'");
  }

  void check(const Declarations& declarations, const Frame& frame, Needs&) const override {
    const Rows rows = check_floats(declarations, "x", x_, 0, width_);
    if (out_ >= 0) check_same_rows("x", rows, "out", check_floats(declarations, "out", out_, 0, width_));
    if (out_a8_ >= 0) check_same_rows("x", rows, "out_a8", check_a8(declarations, "out_a8", out_a8_, width_));
    check_distinct("x", x_, "out_a8", out_a8_);
    check_distinct("out", out_, "out_a8", out_a8_);
    if (weight_ >= 0) check_vector(declarations, frame, "weight", weight_, width_);
    if (bias_ >= 0) check_vector(declarations, frame, "bias", bias_, width_);
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t rows = step.rows_of(x_);
    const int64_t written = (out_ >= 0 ? width_ * kFloat : 0) + (out_a8_ >= 0 ? a8_row_bytes(width_) : 0);
    return {rows * (width_ * kFloat + written), rows * width_ * 4};
  }

  int64_t scratch_floats(const Step&, const Frame&, const KernelTable&) const override {
    return out_ < 0 ? width_ + 16 : 0;
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const override {
    NormArgs args = {};
    args.kind = kind_;
    args.x = step.floats_of(x_);
    args.ldx = step.ld(x_);
    args.out = floats_or_null(step, out_);
    args.ldo = ld_or_zero(step, out_);
    args.a8 = bytes_or_null(step, out_a8_);
    args.weight = vector_or_null(step, frame, weight_);
    args.bias = vector_or_null(step, frame, bias_);
    args.width = width_;
    args.eps = eps_;
    worker.kernels.norm(args, part.begin, part.end, worker.scratch);
  }

 private:
  int64_t x_, out_, out_a8_;
  NormKind kind_;
  float eps_;
  int64_t weight_, bias_, width_;
};

class Quantize final : public Instruction {
 public:
  explicit Quantize(FieldReader& fields)
      : x_(read_index(fields, "x")),
        col_(read_column(fields, "col")),
        width_(read_width(fields, "width")),
        out_a8_(read_index(fields, "out_a8")),
        two_terms_(fields.flag("two_terms")) {}

  void check(const Declarations& declarations, const Frame&, Needs&) const override {
    const Rows rows = check_floats(declarations, "x", x_, col_, width_);
    check_same_rows("x", rows, "out_a8", check_a8(declarations, "out_a8", out_a8_, width_, two_terms_));
    check_distinct("x", x_, "out_a8", out_a8_);
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t rows = step.rows_of(x_), terms = two_terms_ ? 2 : 1;
    return {rows * (width_ * kFloat + terms * a8_row_bytes(width_)), rows * terms * width_ * 2};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame&, const Worker& worker, const Part& part) const override {
    const int64_t ld = step.ld(x_);
    const float* x = step.floats_of(x_) + col_;
    const auto quantize = two_terms_ ? worker.kernels.quantize_a8_two_terms : worker.kernels.quantize_a8;
    quantize(x + part.begin * ld, ld, part.begin, part.end - part.begin, width_, step.bytes_of(out_a8_));
  }

 private:
  int64_t x_, col_, width_, out_a8_;
  bool two_terms_;
};

constexpr size_t kMaxMatrices = 16;

// The result goes to a buffer, or straight to an output of the program.
class Matmul final : public Instruction {
 public:
  Matmul(FieldReader& fields, bool is_output)
      : x_(read_index(fields, "x")),
        width_(read_width(fields, "width")),
        weights_(fields.integers("weights", 0, kMaxIndex)),
        out_(is_output ? -1 : read_index(fields, "out")),
        output_(is_output ? fields.integer("output", 0, kMaxOutputs - 1) : -1),
        out_col_(read_column(fields, "out_col")),
        biases_(fields.integers("biases", -1, kMaxIndex)),
        clip_(read_float(fields, "clip")),
        residual_(is_output ? -1 : read_optional(fields, "residual")),
        multiplier_(read_float(fields, "multiplier")),
        two_terms_(fields.flag("two_terms")) {
    if (weights_.empty() || weights_.size() > kMaxMatrices) {
      invalid(fields.owner(), ": field 'weights' must name 1 to ", kMaxMatrices, " matrices, got ", weights_.size());
    }
    if (biases_.size() != weights_.size()) {
      invalid(fields.owner(), ": field 'biases' must have one entry per matrix, ", weights_.size(), ", got ",
              biases_.size());
    }
    if (clip_ < 0) invalid(fields.owner(), ": field 'clip' must be 0 (none) or more, got ", clip_);
  }

  void check(const Declarations& declarations, const Frame& frame, Needs& needs) const override {
    int64_t outputs = 0;
    const Partner partner = check_matrix(declarations, frame, "weights", weights_.front()).partner();
    for (size_t i = 0; i < weights_.size(); ++i) {
      const PackedMatrix& matrix = check_matrix(declarations, frame, "weights", weights_[i]);
      if (matrix.cols() != width_) invalid("a matrix of 'weights' has ", matrix.cols(), " columns, 'width' is ", width_);
      if (matrix.partner() != partner) invalid("the matrices of 'weights' take float32 and int8 activations");
      if (biases_[i] >= 0) check_vector(declarations, frame, "biases", biases_[i], matrix.rows());
      outputs += matrix.rows();
    }
    const Rows rows = partner == Partner::a8 ? check_a8(declarations, "x", x_, width_, two_terms_)
                                             : check_floats(declarations, "x", x_, 0, width_);
    if (output_ >= 0) {
      need_columns(needs, output_, rows, out_col_ + outputs);
      return;
    }
    check_same_rows("x", rows, "out", check_floats(declarations, "out", out_, out_col_, outputs));
    check_distinct("x", x_, "out", out_);
    if (residual_ >= 0) {
      check_same_rows("x", rows, "residual", check_floats(declarations, "residual", residual_, 0, outputs));
      if (residual_ == out_ && out_col_ != 0) invalid("'residual' is buffer ", out_, ", so 'out_col' must be 0");
    }
  }

  Cost cost(const Step& step, const Frame& frame) const override {
    Cost cost;
    const int64_t rows = step.rows_of(x_), terms = two_terms_ && is_a8(step, frame) ? 2 : 1;
    for (const int64_t weight : weights_) {
      const PackedMatrix& matrix = *step.weight(frame.weight_base + weight).matrix;
      cost.bytes += matrix.bytes() + rows * matrix.rows() * kFloat * (residual_ >= 0 ? 2 : 1);
      cost.flops += 2 * rows * terms * matrix.rows() * matrix.cols();
    }
    cost.bytes += rows * (is_a8(step, frame) ? terms * a8_row_bytes(width_) : width_ * kFloat);
    return cost;
  }

  const uint8_t* stream(const Step& step, const Frame& frame, int64_t unit) const override {
    for (const int64_t weight : weights_) {
      const PackedMatrix& matrix = *step.weight(frame.weight_base + weight).matrix;
      if (unit < matrix.panels()) return matrix.data() + matrix.bytes() / matrix.panels() * unit;
      unit -= matrix.panels();
    }
    return nullptr;
  }

  int64_t scratch_floats(const Step& step, const Frame& frame, const KernelTable& kernels) const override {
    int64_t most = 0;
    std::array<MatmulArgs, kMaxMatrices> segments;
    fill(step, frame, segments);
    for (size_t i = 0; i < weights_.size(); ++i) most = std::max(most, kernels.matmul_scratch_floats(segments[i]));
    return most;
  }

  Work work(const Step& step, const Frame& frame, int) const override {
    std::array<MatmulArgs, kMaxMatrices> segments;
    fill(step, frame, segments);
    return product_work({segments.data(), weights_.size()});
  }

  void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const override {
    std::array<MatmulArgs, kMaxMatrices> segments;
    fill(step, frame, segments);
    run_products(worker, {segments.data(), weights_.size()}, part.begin, part.end);
  }

 private:
  bool is_a8(const Step& step, const Frame& frame) const {
    return step.weight(frame.weight_base + weights_.front()).matrix->partner() == Partner::a8;
  }

  void fill(const Step& step, const Frame& frame, std::array<MatmulArgs, kMaxMatrices>& segments) const {
    const bool a8 = is_a8(step, frame);
    float* const out = output_ < 0 ? step.floats_of(out_) : step.outputs[static_cast<size_t>(output_)].as<float>();
    const int64_t ldo = output_ < 0 ? step.ld(out_) : step.outputs[static_cast<size_t>(output_)].shape[1];
    int64_t column = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      const PackedMatrix& matrix = *step.weight(frame.weight_base + weights_[i]).matrix;
      MatmulArgs& args = segments[i] = product_args(matrix);
      args.x = a8 ? nullptr : step.floats_of(x_);
      args.ldx = step.ld(x_);
      args.a8 = a8 ? step.bytes_of(x_) : nullptr;
      if (two_terms_) take_exactly(args);
      args.m = step.rows_of(x_);
      args.out = out + out_col_ + column;
      args.ldo = ldo;
      args.bias = vector_or_null(step, frame, biases_[i]);
      args.residual = residual_ < 0 ? nullptr : step.floats_of(residual_) + column;
      args.ldr = ld_or_zero(step, residual_);
      args.clip = clip_;
      args.multiplier = multiplier_;
      column += matrix.rows();
    }
  }

  int64_t x_, width_;
  std::vector<int64_t> weights_;
  int64_t out_, output_, out_col_;
  std::vector<int64_t> biases_;
  float clip_;
  int64_t residual_;
  float multiplier_;
  bool two_terms_;
};

class Glu final : public Instruction {
 public:
  explicit Glu(FieldReader& fields)
      : x_(read_index(fields, "x")),
        width_(read_width(fields, "width")),
        out_(read_optional(fields, "out")),
        out_a8_(read_optional(fields, "out_a8")),
        activation_(fields.choice("activation", {"silu", "gelu_tanh"}) == 0 ? Activation::silu : Activation::gelu_tanh) {
    if (out_ < 0 && out_a8_ < 0) invalid(fields.owner(), ": one of 'out' and 'out_a8' must be a buffer");
  }

  void check(const Declarations& declarations, const Frame&, Needs&) const override {
    const Rows rows = check_floats(declarations, "x", x_, 0, 2 * width_);
    if (out_ >= 0) check_same_rows("x", rows, "out", check_floats(declarations, "out", out_, 0, width_));
    if (out_a8_ >= 0) check_same_rows("x", rows, "out_a8", check_a8(declarations, "out_a8", out_a8_, width_));
    check_distinct("x", x_, "out_a8", out_a8_);
    check_distinct("out", out_, "out_a8", out_a8_);
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t rows = step.rows_of(x_);
    const int64_t written = (out_ >= 0 ? width_ * kFloat : 0) + (out_a8_ >= 0 ? a8_row_bytes(width_) : 0);
    return {rows * (2 * width_ * kFloat + written), rows * width_ * 20};
  }

  int64_t scratch_floats(const Step&, const Frame&, const KernelTable&) const override {
    return out_ < 0 ? width_ + 16 : 0;
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame&, const Worker& worker, const Part& part) const override {
    const GluArgs args = {
        activation_, step.floats_of(x_), step.ld(x_), floats_or_null(step, out_), ld_or_zero(step, out_),
        bytes_or_null(step, out_a8_), width_};
    worker.kernels.glu(args, part.begin, part.end, worker.scratch);
  }

 private:
  int64_t x_, width_, out_, out_a8_;
  Activation activation_;
};

template <typename T>
std::unique_ptr<const Instruction> make(FieldReader& fields) {
  return std::make_unique<T>(fields);
}

}  // namespace

std::unique_ptr<const Instruction> make_embed(FieldReader& fields) { return make<Embed>(fields); }
std::unique_ptr<const Instruction> make_norm(FieldReader& fields) { return make<Norm>(fields); }
std::unique_ptr<const Instruction> make_quantize(FieldReader& fields) { return make<Quantize>(fields); }
std::unique_ptr<const Instruction> make_matmul(FieldReader& fields) { return std::make_unique<Matmul>(fields, false); }
std::unique_ptr<const Instruction> make_matmul_out(FieldReader& fields) {
  return std::make_unique<Matmul>(fields, true);
}
std::unique_ptr<const Instruction> make_glu(FieldReader& fields) { return make<Glu>(fields); }

}  // namespace puna
