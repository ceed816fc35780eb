// Rotation, the store of keys and values, and attention over them.
#include <algorithm>
#include <optional>

#include "compare.h"
#include "core/attention_plan.h"
#include "guarded.h"
#include "kernel_calls.h"

namespace puna::replay {
namespace {

constexpr int64_t kFloat = sizeof(float);

// The requests of a step and their cache [pages, 2, layers, page size, KV heads, head size].
class Cache {
 public:
  explicit Cache(const Call& call)
      : offsets(numbers(call, "offsets")),
        lengths(numbers(call, "lengths")),
        table_(numbers(call, "table")),
        blocks_(call.bytes("kv")),
        memory_(blocks_.data(), static_cast<int64_t>(blocks_.size())),
        heads_(call.integer("num_kv_heads")),
        head_dim_(call.integer("head_dim")),
        page_size_(call.integer("page_size")),
        layers_(call.integer("layers")),
        layer_(call.integer("layer")) {
    const std::string type = call.text("kv_type");
    type_ = type == "float32"   ? KvType::f32
            : type == "float16" ? KvType::f16
            : type == "int8"    ? KvType::i8
                                : KvType::bf16;
    if (type_ == KvType::i8) {
      scales_ = call.floats("kv_scales");
      held_scales_.emplace(scales_.data(), static_cast<int64_t>(scales_.size()) * kFloat);
    }
    for (uint32_t request = 0; request < lengths.size(); ++request) {
      for (uint32_t row = offsets[request]; row < offsets[request + 1]; ++row) {
        request_of.push_back(request);
        position_of.push_back(lengths[request] + row - offsets[request]);
      }
    }
  }

  KvView view() const {
    const int64_t rows = layer_ * page_size_, to_values = layers_ * page_size_;
    const int64_t row_bytes = heads_ * head_dim_ * kv_element_bytes(type_);
    KvView kv = {};
    kv.keys = memory_.data() + rows * row_bytes;
    kv.values = kv.keys + to_values * row_bytes;
    if (held_scales_) {
      kv.key_scales = held_scales_->floats() + rows * heads_;
      kv.value_scales = kv.key_scales + to_values * heads_;
    }
    kv.type = type_;
    kv.page_rows = 2 * to_values;
    kv.page_size = page_size_;
    kv.table = table_.data();
    kv.table_stride = static_cast<int64_t>(table_.size() / lengths.size());
    return kv;
  }
  int64_t rows() const { return static_cast<int64_t>(request_of.size()); }
  // Whether it is now what was recorded.
  bool holds(const std::string& where, const Call& call) const {
    bool is_good = is_equal(where + ", cache", memory_.data(), call.bytes("kv_out").data(), memory_.bytes());
    if (held_scales_) {
      is_good &= is_equal(where + ", scales", held_scales_->floats(), call.floats("kv_scales_out").data(),
                          static_cast<int64_t>(scales_.size()));
    }
    return is_good;
  }

  const std::vector<uint32_t> offsets, lengths;
  std::vector<uint32_t> request_of, position_of;

 private:
  static std::vector<uint32_t> numbers(const Call& call, const std::string& name) {
    std::vector<uint32_t> result;
    for (const int64_t value : call.integers(name)) result.push_back(static_cast<uint32_t>(value));
    return result;
  }

  std::vector<uint32_t> table_;
  std::vector<uint8_t> blocks_;
  Guarded memory_;
  int64_t heads_, head_dim_, page_size_, layers_, layer_;
  KvType type_ = KvType::f32;
  std::vector<float> scales_;
  std::optional<Guarded> held_scales_;
};

}  // namespace

bool check_rope_kv(const Call& call, const KernelTable& kernels) {
  const std::vector<float> x = call.floats("x"), angles = call.floats("angles");
  bool is_good = true;
  for (const bool is_divided : {false, true}) {
    const Cache cache(call);
    const Guarded rows(x.data(), static_cast<int64_t>(x.size()) * kFloat);
    const Guarded held_angles(angles.data(), static_cast<int64_t>(angles.size()) * kFloat);
    RopeKvArgs args = {};
    args.x = rows.floats();
    args.ldx = static_cast<int64_t>(x.size()) / cache.rows();
    args.q_col = call.integer("q_col");
    args.k_col = call.integer("k_col");
    args.v_col = call.integer("v_col");
    args.num_heads = call.integer("num_heads");
    args.num_kv_heads = call.integer("num_kv_heads");
    args.head_dim = call.integer("head_dim");
    args.rot_dim = call.integer("rot_dim");
    args.interleaved = call.flag("interleaved");
    args.angles = held_angles.floats();
    args.ld_angles = args.rot_dim;
    args.request_of = cache.request_of.data();
    args.position_of = cache.position_of.data();
    args.kv = cache.view();
    for (int64_t row = 0; row < cache.rows(); row += is_divided ? 1 : cache.rows()) {
      kernels.rope_kv(args, row, is_divided ? row + 1 : cache.rows());
    }
    const std::string where = call.where() + (is_divided ? ", row by row" : "");
    is_good &= is_equal(where + ", rows", rows.floats(), call.floats("out").data(), static_cast<int64_t>(x.size())) &&
               cache.holds(where, call);
  }
  return is_good;
}

bool check_attention(const Call& call, const KernelTable& kernels) {
  const std::vector<float> queries = call.floats("q"), recorded = call.floats("out");
  const Cache cache(call);
  const Guarded held(queries.data(), static_cast<int64_t>(queries.size()) * kFloat);
  AttentionArgs args = {};
  args.q = held.floats();
  args.num_heads = call.integer("num_heads");
  args.num_kv_heads = call.integer("num_kv_heads");
  args.head_dim = call.integer("head_dim");
  args.ldq = args.ldo = args.num_heads * args.head_dim;
  args.scale = call.number("scale");
  args.softcap = call.number("softcap");
  args.window = call.integer("window");
  args.kv = cache.view();
  const Guarded scratch(kernels.attention_scratch_floats(args) * kFloat, kAligned);

  bool is_good = true;
  // One thread takes whole tiles, many take single heads and split long contexts.
  for (const int threads : {1, 2, 64}) {
    const Guarded out(static_cast<int64_t>(recorded.size()) * kFloat);
    args.out = out.floats();
    AttentionPlan plan;
    plan.build({args.num_heads, args.num_kv_heads, args.head_dim, args.window}, cache.offsets, cache.lengths, threads);
    const Guarded states(plan.state_floats * kFloat, kAligned);
    for (const AttentionTile& tile : plan.whole) kernels.attention(args, tile, scratch.floats());
    for (size_t i = 0; i < plan.splits.size(); ++i) {
      kernels.attention_split(args, plan.splits[i], scratch.floats(), states.floats() + plan.split_offset[i]);
    }
    for (size_t i = 0; i < plan.combined.size(); ++i) {
      kernels.attention_combine(args, plan.combined[i], states.floats() + plan.combined_offset[i]);
    }
    const std::string where = call.where() + ", planned for " + std::to_string(threads) + " threads";
    is_good &= is_equal(where, out.floats(), recorded.data(), static_cast<int64_t>(recorded.size()));
  }
  return is_good;
}

}  // namespace puna::replay
