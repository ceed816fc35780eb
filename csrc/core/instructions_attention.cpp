// Instructions of attention: rope_angles, rope_kv, attention.
#include "instruction.h"
#include "text.h"

namespace puna {
namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kMaxHeads = 1 << 16;

void need_cache(Needs& needs, int64_t layer, int64_t num_kv_heads, int64_t head_dim) {
  if (needs.cache && (needs.num_kv_heads != num_kv_heads || needs.head_dim != head_dim)) {
    invalid("the cache has ", needs.num_kv_heads, " heads of ", needs.head_dim, " in another instruction, here ",
            num_kv_heads, " of ", head_dim);
  }
  needs.cache = true;
  needs.num_kv_heads = num_kv_heads;
  needs.head_dim = head_dim;
  needs.layers = std::max(needs.layers, layer + 1);
}

// Bytes of the keys (or values) of one head at one position.
int64_t head_bytes(const KvView& kv, int64_t head_dim) {
  return head_dim * kv_element_bytes(kv.type) + (kv.type == KvType::i8 ? kFloat : 0);
}

class RopeAngles final : public Instruction {
 public:
  explicit RopeAngles(FieldReader& fields) : rope_(read_index(fields, "rope")), out_(read_index(fields, "out")) {}

  void check(const Declarations& declarations, const Frame&, Needs& needs) const override {
    if (rope_ >= static_cast<int64_t>(declarations.ropes.size())) {
      invalid("'rope' is ", rope_, ", the program has ", declarations.ropes.size());
    }
    const int64_t rot_dim = declarations.ropes[static_cast<size_t>(rope_)].rot_dim();
    if (check_floats(declarations, "out", out_, 0, rot_dim) != Rows::T) invalid("'out' must have rows T");
    needs.positions = true;
  }

  Cost cost(const Step& step, const Frame&) const override {
    const int64_t elements = step.T * step.rope(rope_).rot_dim();
    return {elements * kFloat, elements * 20};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.T}; }

  void run(const Step& step, const Frame&, const Worker&, const Part& part) const override {
    const RopeSpec& rope = step.rope(rope_);
    const RopeFrequencies& frequencies = step.frequencies(rope_);
    for (int64_t row = part.begin; row < part.end; ++row) {
      const size_t i = static_cast<size_t>(row);
      rope_angles(step.position_of[i], frequencies.of_request[step.request_of[i]], rope.rot_dim() / 2,
                  rope.attention_factor(), step.floats_of(out_) + row * step.ld(out_));
    }
  }

 private:
  int64_t rope_, out_;
};

class RopeKv final : public Instruction {
 public:
  explicit RopeKv(FieldReader& fields)
      : x_(read_index(fields, "x")),
        q_col_(read_column(fields, "q_col")),
        k_col_(read_column(fields, "k_col")),
        v_col_(read_column(fields, "v_col")),
        num_heads_(fields.integer("num_heads", 1, kMaxHeads)),
        num_kv_heads_(fields.integer("num_kv_heads", 1, kMaxHeads)),
        head_dim_(fields.integer("head_dim", 1, kMaxHeadDim)),
        rot_dim_(fields.integer("rot_dim", 2, kMaxHeadDim)),
        interleaved_(fields.flag("interleaved")),
        angles_(read_index(fields, "angles")),
        layer_(read_index(fields, "layer")) {
    if (rot_dim_ % 2 != 0 || rot_dim_ > head_dim_) {
      invalid(fields.owner(), ": field 'rot_dim' must be even and no more than head_dim ", head_dim_, ", got ", rot_dim_);
    }
  }

  void check(const Declarations& declarations, const Frame& frame, Needs& needs) const override {
    const int64_t q_width = num_heads_ * head_dim_, kv_width = num_kv_heads_ * head_dim_;
    const Rows rows = check_floats(declarations, "x", x_, q_col_, q_width);
    check_floats(declarations, "x", x_, k_col_, kv_width);
    check_floats(declarations, "x", x_, v_col_, kv_width);
    if (rows != Rows::T) invalid("'x' must have rows T");
    if (check_floats(declarations, "angles", angles_, 0, rot_dim_) != Rows::T) invalid("'angles' must have rows T");
    check_distinct("x", x_, "angles", angles_);
    for (const int64_t column : {k_col_, v_col_}) {
      if (q_col_ < column + kv_width && column < q_col_ + q_width) {
        invalid("the queries at column ", q_col_, " overlap the keys or values at column ", column);
      }
    }
    needs.positions = true;
    need_cache(needs, frame.layer + layer_, num_kv_heads_, head_dim_);
  }

  Cost cost(const Step& step, const Frame& frame) const override {
    const int64_t q_width = num_heads_ * head_dim_, kv_width = num_kv_heads_ * head_dim_;
    const int64_t stored = 2 * num_kv_heads_ * head_bytes(step.kv(frame.layer + layer_), head_dim_);
    return {step.T * ((2 * q_width + 2 * kv_width + rot_dim_) * kFloat + stored),
            step.T * (num_heads_ + num_kv_heads_) * rot_dim_ * 3};
  }

  Work work(const Step& step, const Frame&, int) const override { return {step.T}; }

  void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const override {
    RopeKvArgs args = {};
    args.x = step.floats_of(x_);
    args.ldx = step.ld(x_);
    args.q_col = q_col_;
    args.k_col = k_col_;
    args.v_col = v_col_;
    args.num_heads = num_heads_;
    args.num_kv_heads = num_kv_heads_;
    args.head_dim = head_dim_;
    args.rot_dim = rot_dim_;
    args.interleaved = interleaved_;
    args.angles = step.floats_of(angles_);
    args.ld_angles = step.ld(angles_);
    args.request_of = step.request_of.data();
    args.position_of = step.position_of.data();
    args.kv = step.kv(frame.layer + layer_);
    worker.kernels.rope_kv(args, part.begin, part.end);
  }

 private:
  int64_t x_, q_col_, k_col_, v_col_, num_heads_, num_kv_heads_, head_dim_, rot_dim_;
  bool interleaved_;
  int64_t angles_, layer_;
};

class Attention final : public Instruction {
 public:
  explicit Attention(FieldReader& fields)
      : x_(read_index(fields, "x")),
        q_col_(read_column(fields, "q_col")),
        out_(read_index(fields, "out")),
        shape_{fields.integer("num_heads", 1, kMaxHeads), fields.integer("num_kv_heads", 1, kMaxHeads),
               fields.integer("head_dim", 1, kMaxHeadDim), fields.integer("window", 0, int64_t{1} << 31)},
        layer_(read_index(fields, "layer")),
        scale_(read_float(fields, "scale")),
        softcap_(read_float(fields, "softcap")) {
    if (softcap_ < 0) invalid(fields.owner(), ": field 'softcap' must be 0 (none) or more, got ", softcap_);
    if (shape_.num_heads % shape_.num_kv_heads != 0) {
      invalid(fields.owner(), ": ", shape_.num_heads, " query heads are no multiple of ", shape_.num_kv_heads,
              " key-value heads");
    }
  }

  void check(const Declarations& declarations, const Frame& frame, Needs& needs) const override {
    const int64_t width = shape_.num_heads * shape_.head_dim;
    if (check_floats(declarations, "x", x_, q_col_, width) != Rows::T) invalid("'x' must have rows T");
    if (check_floats(declarations, "out", out_, 0, width) != Rows::T) invalid("'out' must have rows T");
    check_distinct("x", x_, "out", out_);
    needs.positions = true;
    need_cache(needs, frame.layer + layer_, shape_.num_kv_heads, shape_.head_dim);
    if (std::find(needs.attention.begin(), needs.attention.end(), shape_) == needs.attention.end()) {
      needs.attention.push_back(shape_);
    }
  }

  Cost cost(const Step& step, const Frame& frame) const override {
    const AttentionPlan& plan = step.plan(shape_);
    const int64_t kv_row = shape_.num_kv_heads * head_bytes(step.kv(frame.layer + layer_), shape_.head_dim);
    return {2 * plan.positions_read * kv_row + 2 * step.T * shape_.num_heads * shape_.head_dim * kFloat,
            4 * plan.pairs * shape_.head_dim};
  }

  int64_t scratch_floats(const Step& step, const Frame& frame, const KernelTable& kernels) const override {
    return kernels.attention_scratch_floats(arguments(step, frame));
  }

  // The states of all splits first, then what they give together.
  int phases(const Step& step) const override { return step.plan(shape_).splits.empty() ? 1 : 2; }

  Work work(const Step& step, const Frame&, int phase) const override {
    const AttentionPlan& plan = step.plan(shape_);
    const size_t tiles = phase == 0 ? plan.splits.size() + plan.whole.size() : plan.combined.size();
    return {.units = static_cast<int64_t>(tiles), .most = 1};
  }

  void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const override {
    const AttentionArgs args = arguments(step, frame);
    const AttentionPlan& plan = step.plan(shape_);
    for (size_t i = static_cast<size_t>(part.begin); i < static_cast<size_t>(part.end); ++i) {
      if (part.phase == 1) {
        worker.kernels.attention_combine(args, plan.combined[i], step.attention_states() + plan.combined_offset[i]);
      } else if (i < plan.splits.size()) {
        worker.kernels.attention_split(args, plan.splits[i], worker.scratch,
                                       step.attention_states() + plan.split_offset[i]);
      } else {
        worker.kernels.attention(args, plan.whole[i - plan.splits.size()], worker.scratch);
      }
    }
  }

 private:
  AttentionArgs arguments(const Step& step, const Frame& frame) const {
    AttentionArgs args = {};
    args.q = step.floats_of(x_) + q_col_;
    args.ldq = step.ld(x_);
    args.out = step.floats_of(out_);
    args.ldo = step.ld(out_);
    args.num_heads = shape_.num_heads;
    args.num_kv_heads = shape_.num_kv_heads;
    args.head_dim = shape_.head_dim;
    args.scale = scale_;
    args.softcap = softcap_;
    args.window = shape_.window;
    args.kv = step.kv(frame.layer + layer_);
    return args;
  }

  int64_t x_, q_col_, out_;
  AttentionShape shape_;
  int64_t layer_;
  float scale_, softcap_;
};

template <typename T>
std::unique_ptr<const Instruction> make(FieldReader& fields) {
  return std::make_unique<T>(fields);
}

}  // namespace

std::unique_ptr<const Instruction> make_rope_angles(FieldReader& fields) { return make<RopeAngles>(fields); }
std::unique_ptr<const Instruction> make_rope_kv(FieldReader& fields) { return make<RopeKv>(fields); }
std::unique_ptr<const Instruction> make_attention(FieldReader& fields) { return make<Attention>(fields); }

}  // namespace puna
