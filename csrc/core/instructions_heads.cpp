// head_norm: the RMS norm of each head of queries or keys.
#include "instruction.h"
#include "text.h"

namespace puna {
namespace {

class HeadNorm final : public Instruction {
 public:
  explicit HeadNorm(FieldReader& fields)
      : x_(read_index(fields, "x")),
        col_(read_column(fields, "col")),
        width_(read_width(fields, "width")),
        parts_(read_width(fields, "parts")),
        eps_(read_float(fields, "eps")),
        weight_(read_index(fields, "weight")) {
    if (eps_ < 0) invalid(fields.owner(), ": field 'eps' must be 0 or more, got ", eps_);
    if (parts_ > kMaxWidth / width_) invalid(fields.owner(), ": ", parts_, " parts of ", width_, " columns are too many");
  }

  void check(const Declarations& declarations, const Frame& frame, Needs&) const override {
    check_floats(declarations, "x", x_, col_, width_ * parts_);
    check_vector(declarations, frame, "weight", weight_, width_);
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t elements = step.rows_of(x_) * width_ * parts_;
    return {2 * elements * static_cast<int64_t>(sizeof(float)), 4 * elements};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.rows_of(x_)}; }

  void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const override {
    for (int64_t row = part.begin; row < part.end; ++row) {
      // The parts of a row are rows of a narrower matrix.
      NormArgs args = {};
      args.kind = NormKind::rms;
      args.out = step.floats_of(x_) + row * step.ld(x_) + col_;
      args.ldo = width_;
      args.x = args.out;
      args.ldx = width_;
      args.weight = vector_or_null(step, frame, weight_);
      args.width = width_;
      args.eps = eps_;
      worker.kernels.norm(args, 0, parts_, nullptr);
    }
  }

 private:
  int64_t x_, col_, width_, parts_;
  float eps_;
  int64_t weight_;
};

}  // namespace

std::unique_ptr<const Instruction> make_head_norm(FieldReader& fields) { return std::make_unique<HeadNorm>(fields); }

}  // namespace puna
