// Low-rank updates of products, for the requests of a step that have an adapter.
#include <algorithm>

#include "adapter.h"
#include "instruction.h"
#include "product.h"
#include "text.h"

namespace puna {
namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kPanelBlock = 8;  // panels of B in a unit of work: 128 outputs

int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// out[:, column_i …] += scale_i * (B_i (A_i x)) for products of one operand, in two phases: low = A x, out += B low. Rows
// are taken in chunks of one adapter each, and each chunk goes through the kernels of ordinary products: what a row gets
// depends on its own operand and adapter only. Rows without an adapter are not touched.
class LowRankUpdate : public Instruction {
 public:
  explicit LowRankUpdate(FieldReader& fields, bool is_lookup)
      : x_(is_lookup ? -1 : read_index(fields, "x")),
        width_(is_lookup ? 0 : read_width(fields, "width")),
        out_(read_index(fields, "out")),
        low_(read_index(fields, "low")),
        rank_(read_width(fields, "rank")),
        layer_(fields.integer("layer", -1, kMaxIndex)),
        targets_(fields.integers("targets", 0, kMaxAdapterTargets - 1)),
        columns_(fields.integers("columns", 0, kMaxWidth)),
        widths_(fields.integers("widths", 1, kMaxWidth)) {
    if (targets_.empty() || targets_.size() > static_cast<size_t>(kMaxAdapterTargets) ||
        columns_.size() != targets_.size() || widths_.size() != targets_.size()) {
      invalid(fields.owner(), ": fields 'targets', 'columns' and 'widths' must have 1 to ", kMaxAdapterTargets,
              " entries each, got ", targets_.size(), ", ", columns_.size(), " and ", widths_.size());
    }
    if (is_lookup && targets_.size() != 1) invalid(fields.owner(), ": a look-up has one target");
  }

  void check(const Declarations& declarations, const Frame& frame, Needs& needs) const override {
    if (declarations.adapters == nullptr) invalid("the program has no adapter slots");
    Rows rows = Rows::T;
    if (is_lookup()) {
      needs.tokens = true;
    } else {
      rows = check_floats(declarations, "x", x_, 0, width_);
      check_distinct("x", x_, "out", out_);
      check_distinct("x", x_, "low", low_);
    }
    check_distinct("out", out_, "low", low_);
    const Rows low_rows = check_floats(declarations, "low", low_, 0, low_stride() * count());
    check_same_rows(is_lookup() ? "tokens" : "x", rows, "low", low_rows);
    for (int64_t i = 0; i < count(); ++i) {
      check_same_rows("low", rows, "out", check_floats(declarations, "out", out_, columns_[at(i)], widths_[at(i)]));
      needs.low_ranks.push_back({layer(frame), targets_[at(i)], width_, widths_[at(i)], rank_, is_lookup()});
    }
  }

  Cost cost(const Step& step, const Frame& frame) const override {
    Cost cost;
    for (const AdapterRows& chunk : step.adapter_rows(rows(step))) {
      for (int64_t i = 0; i < count(); ++i) {
        const LowRank* update = chunk.adapter->find(layer(frame), targets_[at(i)]);
        if (update == nullptr) continue;
        const int64_t rank = update->b->cols(), from = is_lookup() ? 1 : width_;
        cost.bytes += update->b->bytes() + (is_lookup() ? 0 : update->a->bytes());
        cost.bytes += chunk.count * (from + 2 * rank + 2 * widths_[at(i)]) * kFloat;
        cost.flops += 2 * chunk.count * rank * (from + widths_[at(i)]);
      }
    }
    return cost;
  }

  int phases(const Step&) const override { return 2; }

  Work work(const Step& step, const Frame&, int phase) const override {
    const int64_t chunks = static_cast<int64_t>(step.adapter_rows(rows(step)).size());
    return {chunks * (phase == 0 ? count() : blocks())};
  }

  void run(const Step& step, const Frame& frame, const Worker& worker, const Part& part) const override {
    const int64_t per_chunk = part.phase == 0 ? count() : blocks();
    const std::vector<AdapterRows>& chunks = step.adapter_rows(rows(step));
    for (int64_t unit = part.begin; unit < part.end; ++unit) {
      const AdapterRows& chunk = chunks[at(unit / per_chunk)];
      if (part.phase == 0) {
        contract(step, frame, worker, chunk, unit % per_chunk);
      } else {
        expand(step, frame, worker, chunk, unit % per_chunk);
      }
    }
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  bool is_lookup() const { return x_ < 0; }
  int64_t count() const { return static_cast<int64_t>(targets_.size()); }
  int64_t layer(const Frame& frame) const { return layer_ < 0 ? -1 : frame.layer + layer_; }
  int64_t low_stride() const { return panels_of(rank_) * kPanelRows; }
  Rows rows(const Step& step) const { return step.rows_kind(low_); }
  int64_t blocks() const {
    int64_t total = 0;
    for (const int64_t width : widths_) total += blocks_of(width);
    return total;
  }
  static int64_t blocks_of(int64_t width) { return (panels_of(width) + kPanelBlock - 1) / kPanelBlock; }
  float* low_of(const Step& step, const AdapterRows& chunk, int64_t i) const {
    return step.floats_of(low_) + chunk.first * step.ld(low_) + i * low_stride();
  }

  void contract(const Step& step, const Frame& frame, const Worker& worker, const AdapterRows& chunk, int64_t i) const {
    const LowRank* update = chunk.adapter->find(layer(frame), targets_[at(i)]);
    if (update == nullptr) return;
    float* low = low_of(step, chunk, i);
    if (is_lookup()) {
      for (int64_t row = 0; row < chunk.count; ++row) {
        update->a->row_f32(step.tokens[at(chunk.first + row)], low + row * step.ld(low_));
      }
      return;
    }
    MatmulArgs args = product_args(*update->a);
    args.x = step.floats_of(x_) + chunk.first * step.ld(x_);
    args.ldx = step.ld(x_);
    args.m = chunk.count;
    args.out = low;
    args.ldo = step.ld(low_);
    worker.kernels.matmul(args, 0, panels_of(args.rows), worker.scratch);
  }

  // One block of panels of B, counted through all targets.
  void expand(const Step& step, const Frame& frame, const Worker& worker, const AdapterRows& chunk, int64_t block) const {
    int64_t i = 0;
    for (; block >= blocks_of(widths_[at(i)]); ++i) block -= blocks_of(widths_[at(i)]);
    const LowRank* update = chunk.adapter->find(layer(frame), targets_[at(i)]);
    if (update == nullptr) return;
    MatmulArgs args = product_args(*update->b);
    args.x = low_of(step, chunk, i);
    args.ldx = step.ld(low_);
    args.m = chunk.count;
    args.out = step.floats_of(out_) + chunk.first * step.ld(out_) + columns_[at(i)];
    args.ldo = step.ld(out_);
    args.residual = args.out;
    args.ldr = args.ldo;
    args.multiplier = update->scale;
    const int64_t first = block * kPanelBlock;
    worker.kernels.matmul(args, first, std::min(first + kPanelBlock, panels_of(args.rows)), worker.scratch);
  }

  int64_t x_, width_, out_, low_, rank_, layer_;
  std::vector<int64_t> targets_, columns_, widths_;
};

}  // namespace

std::unique_ptr<const Instruction> make_lora(FieldReader& fields) {
  return std::make_unique<LowRankUpdate>(fields, false);
}
std::unique_ptr<const Instruction> make_lora_embed(FieldReader& fields) {
  return std::make_unique<LowRankUpdate>(fields, true);
}

}  // namespace puna
