#include "step.h"

#include <algorithm>
#include <limits>
#include <new>

#include "text.h"

namespace puna {
namespace {

// Of a step whose token ids nobody asks for, so that no array bounds their number.
constexpr int64_t kMaxTokens = int64_t{1} << 24;

constexpr const char* kInputNames[] = {"tokens",        "input_row_offsets", "return_n_logits", "kv_blocks",
                                       "kv_scales",     "cache_lengths",     "lookup_table",    "max_lengths",
                                       "request_lengths",
                                       "lora_ids",      "lora_ranks",        "lora_grouped_offsets", "num_active_loras",
                                       "lora_end_idx",  "batch_seq_len",     "lora_ids_kv",
                                       "lora_grouped_offsets_kv"};

// An input that must be there, with this type and number of dimensions.
const ArrayView& require(const Inputs& inputs, const char* name, ElementType type, size_t dimensions) {
  const auto found = inputs.find(name);
  if (found == inputs.end()) invalid("input '", name, "' is missing");
  const ArrayView& array = found->second;
  if (array.type != type) invalid("input '", name, "' must be ", element_name(type), ", got ", element_name(array.type));
  if (array.shape.size() != dimensions) {
    invalid("input '", name, "' must have ", dimensions, " dimensions, got shape ", shape_text(array.shape));
  }
  return array;
}

void require_length(const ArrayView& array, const char* name, int64_t length) {
  if (array.shape[0] != length) invalid("input '", name, "' must have length ", length, ", got ", array.shape[0]);
}

template <typename T>
void copy(const ArrayView& array, std::vector<T>& target) {
  const T* values = array.as<const T>();
  target.assign(values, values + array.elements());
}

// An input of one number, which must be this one.
void require_count(const Inputs& inputs, const char* name, int64_t count) {
  const ArrayView& array = require(inputs, name, ElementType::i64, 1);
  require_length(array, name, 1);
  if (*array.as<const int64_t>() != count) {
    invalid("input '", name, "' must be ", count, ", got ", *array.as<const int64_t>());
  }
}

// The inputs that follow from the slots and rows of the groups.
void check_derived(const Inputs& inputs, const ArrayView& ids, const std::vector<uint32_t>& borders, int64_t slots) {
  const int64_t groups = ids.shape[0], rows = borders.back();
  const ArrayView& end = require(inputs, "lora_end_idx", ElementType::i64, 1);
  require_length(end, "lora_end_idx", rows);
  if (rows > 0 && end.as<const int64_t>()[0] != rows) {
    invalid("input 'lora_end_idx' must begin with its length, ", rows, ", got ", end.as<const int64_t>()[0]);
  }
  const ArrayView& kv_ids = require(inputs, "lora_ids_kv", ElementType::i32, 1);
  require_length(kv_ids, "lora_ids_kv", 2 * groups);
  const ArrayView& kv_borders = require(inputs, "lora_grouped_offsets_kv", ElementType::u32, 1);
  require_length(kv_borders, "lora_grouped_offsets_kv", 2 * groups + 1);
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t slot = ids.as<const int32_t>()[i];
    if (kv_ids.as<const int32_t>()[i] != slot || kv_ids.as<const int32_t>()[groups + i] != slot + slots) {
      invalid("input 'lora_ids_kv' must be 'lora_ids', then the same plus the ", slots, " slots");
    }
  }
  for (int64_t i = 0; i <= 2 * groups; ++i) {
    const int64_t expected = i <= groups ? borders[static_cast<size_t>(i)] : rows + borders[static_cast<size_t>(i - groups)];
    if (kv_borders.as<const uint32_t>()[i] != expected) {
      invalid("input 'lora_grouped_offsets_kv' must be 'lora_grouped_offsets', then its tail plus ", rows);
    }
  }
}

// Whatever an adapter updates must have the sizes of the product.
void check_adapter(const Needs& needs, const Adapter& adapter) {
  for (const LowRankNeed& need : needs.low_ranks) {
    const LowRank* update = adapter.find(need.layer, need.target);
    if (update == nullptr) continue;
    const int64_t rank = update->b->cols(), inputs = need.is_lookup ? update->a->rows() : update->a->cols();
    const int64_t middle = need.is_lookup ? update->a->cols() : update->a->rows();
    const bool fits = need.is_lookup ? inputs >= needs.vocabulary : inputs == need.inputs;
    if (rank != middle || rank > need.rank || update->b->rows() != need.outputs || !fits) {
      invalid("an adapter's update of target ", need.target, " in layer ", need.layer, " has ", inputs, " inputs, ranks ",
              middle, " and ", rank, " and ", update->b->rows(), " outputs; the product has ",
              need.is_lookup ? needs.vocabulary : need.inputs, " inputs and ", need.outputs, " outputs, and takes rank ",
              need.rank);
    }
  }
}

// Rows that one piece of work takes: enough to use what was read of the adapter, few enough to divide among threads.
constexpr int64_t kAdapterChunk = 32;

void add_chunks(std::vector<AdapterRows>& chunks, const Adapter& adapter, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kAdapterChunk) {
    chunks.push_back({&adapter, row, std::min(kAdapterChunk, end - row)});
  }
}

}  // namespace

void Step::bind(const Declarations& declarations, const Needs& needs, const Inputs& inputs,
                const std::vector<ArrayView>& arrays, int threads) {
  declarations_ = &declarations;
  for (const auto& [name, array] : inputs) {
    if (std::none_of(std::begin(kInputNames), std::end(kInputNames), [&](const char* known) { return name == known; })) {
      invalid("unknown input '", name, "'");
    }
  }
  bind_tokens(needs, inputs);
  if (needs.positions || needs.cache) {
    const ArrayView& lengths = require(inputs, "cache_lengths", ElementType::u32, 1);
    require_length(lengths, "cache_lengths", B);
    copy(lengths, cache_lengths);
  } else {
    cache_lengths.assign(static_cast<size_t>(B), 0);
  }
  if (needs.cache) bind_cache(needs, inputs);
  bind_positions(inputs);
  bind_adapters(needs, inputs);
  bind_outputs(needs, arrays);
  lay_out_buffers();
  plans_.resize(needs.attention.size());
  int64_t state_floats = 0;
  for (size_t i = 0; i < plans_.size(); ++i) {
    plans_[i].build(needs.attention[i], offsets, cache_lengths, threads);
    state_floats = std::max(state_floats, plans_[i].state_floats);
  }
  states_.reserve(state_floats * static_cast<int64_t>(sizeof(float)));
}

void Step::bind_tokens(const Needs& needs, const Inputs& inputs) {
  const ArrayView& rows = require(inputs, "input_row_offsets", ElementType::u32, 1);
  if (rows.shape[0] < 1) invalid("input 'input_row_offsets' must hold at least one number, the 0 it starts with");
  copy(rows, offsets);
  B = rows.shape[0] - 1;
  if (offsets[0] != 0) invalid("input 'input_row_offsets' must start with 0, got ", offsets[0]);
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (int64_t b = 0; b < B; ++b) {
    const uint32_t begin = offsets[static_cast<size_t>(b)], end = offsets[static_cast<size_t>(b) + 1];
    if (end < begin) invalid("input 'input_row_offsets' must not descend, but has ", begin, " before ", end);
    if (needs.last_rows && end == begin) invalid("input 'input_row_offsets' gives request ", b, " no tokens");
    fewest = std::min(fewest, int64_t{end} - begin);
  }
  T = offsets.back();

  tokens.clear();
  if (needs.tokens) {
    const ArrayView& ids = require(inputs, "tokens", ElementType::i64, 1);
    require_length(ids, "tokens", T);
    copy(ids, tokens);
    for (int64_t t = 0; t < T; ++t) {
      const int64_t id = tokens[static_cast<size_t>(t)];
      if (id < 0 || id >= needs.vocabulary) {
        invalid("input 'tokens' holds ", id, " at ", t, "; the embedding has ", needs.vocabulary, " rows");
      }
    }
  } else if (T > kMaxTokens) {
    invalid("input 'input_row_offsets' gives ", T, " tokens; the most is ", kMaxTokens);
  }

  n = 0;
  if (needs.count) {
    const ArrayView& count = require(inputs, "return_n_logits", ElementType::i64, 1);
    require_length(count, "return_n_logits", 1);
    n = *count.as<const int64_t>();
    if (n < 1) invalid("input 'return_n_logits' must be 1 or more, got ", n);
    if (B > 0 && n > fewest) {
      invalid("input 'return_n_logits' is ", n, ", but a request has ", fewest, " tokens in this step");
    }
  }
  R = B * n;
}

void Step::bind_cache(const Needs& needs, const Inputs& inputs) {
  const auto found = inputs.find("kv_blocks");
  if (found == inputs.end()) invalid("input 'kv_blocks' is missing");
  kv_blocks_ = found->second;
  const ElementType type = kv_blocks_.type;
  if (type != ElementType::f32 && type != ElementType::f16 && type != ElementType::bf16 && type != ElementType::i8) {
    invalid("input 'kv_blocks' must be float32, float16, bfloat16 or int8, got ", element_name(type));
  }
  const std::vector<int64_t>& shape = kv_blocks_.shape;
  if (shape.size() != 6 || shape[1] != 2 || shape[2] < needs.layers || shape[3] < 1 ||
      shape[4] != needs.num_kv_heads || shape[5] != needs.head_dim) {
    invalid("input 'kv_blocks' must have the shape [pages, 2, layers >= ", needs.layers, ", page_size, ",
            needs.num_kv_heads, ", ", needs.head_dim, "], got ", shape_text(shape));
  }
  if (type == ElementType::i8) {
    kv_scales_ = require(inputs, "kv_scales", ElementType::f32, 6);
    std::vector<int64_t> expected = shape;
    expected[5] = 1;
    if (kv_scales_.shape != expected) {
      invalid("input 'kv_scales' must have the shape ", shape_text(expected), ", one scale for each head of 'kv_blocks', got ",
              shape_text(kv_scales_.shape));
    }
  } else if (inputs.contains("kv_scales")) {
    invalid("input 'kv_scales' belongs to 'kv_blocks' of int8, got ", element_name(type));
  }
  const ArrayView& table = require(inputs, "lookup_table", ElementType::u32, 2);
  require_length(table, "lookup_table", B);
  copy(table, table_);
  table_stride_ = table.shape[1];
  check_pages(shape[0]);

  const auto limits = inputs.find("max_lengths");
  if (limits == inputs.end()) return;
  const ArrayView& lengths = require(inputs, "max_lengths", ElementType::u32, 2);
  if (lengths.shape[0] < 1 || lengths.shape[1] != 2) {
    invalid("input 'max_lengths' must have the shape [steps, 2], got ", shape_text(lengths.shape));
  }
  const uint32_t most_new = lengths.as<const uint32_t>()[0], most_total = lengths.as<const uint32_t>()[1];
  for (int64_t b = 0; b < B; ++b) {
    const size_t i = static_cast<size_t>(b);
    const int64_t fresh = int64_t{offsets[i + 1]} - offsets[i], total = fresh + cache_lengths[i];
    if (fresh > most_new || total > most_total) {
      invalid("input 'max_lengths' says ", most_new, " new and ", most_total, " total tokens at most, but request ", b,
              " has ", fresh, " and ", total);
    }
  }
}

void Step::check_pages(int64_t pages) const {
  const int64_t page_size = kv_blocks_.shape[3];
  std::vector<uint32_t> written;
  for (int64_t b = 0; b < B; ++b) {
    const size_t i = static_cast<size_t>(b);
    const int64_t cached = cache_lengths[i], total = cached + offsets[i + 1] - offsets[i];
    if (total == cached) continue;
    const int64_t needed = (total + page_size - 1) / page_size;
    if (needed > table_stride_) {
      invalid("input 'lookup_table' has room for ", table_stride_, " pages; request ", b, " with ", total,
              " tokens needs ", needed);
    }
    const uint32_t* row = table_.data() + b * table_stride_;
    for (int64_t page = 0; page < needed; ++page) {
      if (row[page] >= pages) {
        invalid("input 'lookup_table' names page ", row[page], " for request ", b, "; 'kv_blocks' has ", pages);
      }
      if (page >= cached / page_size) written.push_back(row[page]);
    }
  }
  std::sort(written.begin(), written.end());
  const auto twice = std::adjacent_find(written.begin(), written.end());
  if (twice != written.end()) {
    invalid("input 'lookup_table' names page ", *twice, " twice among the pages that this step writes to");
  }
}

void Step::bind_positions(const Inputs& inputs) {
  request_of.resize(static_cast<size_t>(T));
  position_of.resize(static_cast<size_t>(T));
  std::vector<int64_t> lengths(static_cast<size_t>(B));
  for (int64_t b = 0; b < B; ++b) {
    const size_t i = static_cast<size_t>(b);
    const uint32_t cached = cache_lengths[i];
    const int64_t total = int64_t{cached} + offsets[i + 1] - offsets[i];
    if (total > std::numeric_limits<int32_t>::max()) {
      invalid("input 'cache_lengths' brings request ", b, " to ", total, " tokens; the most is 2**31 - 1");
    }
    lengths[i] = total;
    for (uint32_t row = offsets[i]; row < offsets[i + 1]; ++row) {
      request_of[row] = static_cast<uint32_t>(b);
      position_of[row] = cached + (row - offsets[i]);
    }
  }
  if (inputs.contains("request_lengths")) {
    const ArrayView& given = require(inputs, "request_lengths", ElementType::u32, 1);
    require_length(given, "request_lengths", B);
    for (int64_t b = 0; b < B; ++b) lengths[static_cast<size_t>(b)] = given.as<const uint32_t>()[b];
  }
  ropes_.resize(declarations_->ropes.size());
  for (size_t r = 0; r < ropes_.size(); ++r) {
    RopeFrequencies& frequencies = ropes_[r];
    frequencies.of_request.resize(static_cast<size_t>(B));
    frequencies.storage.resize(static_cast<size_t>(B));
    for (size_t b = 0; b < static_cast<size_t>(B); ++b) {
      frequencies.of_request[b] = declarations_->ropes[r].frequencies(lengths[b], frequencies.storage[b]);
    }
  }
}

// Groups of consecutive requests with one adapter, from the first row on; whoever has none comes after them.
void Step::bind_adapters(const Needs& needs, const Inputs& inputs) {
  release_adapters();
  if (needs.low_ranks.empty()) return;
  const ArrayView& ids = require(inputs, "lora_ids", ElementType::i32, 1);
  const int64_t groups = ids.shape[0];
  const ArrayView& ranks = require(inputs, "lora_ranks", ElementType::u32, 1);
  require_length(ranks, "lora_ranks", groups);
  const ArrayView& ends = require(inputs, "lora_grouped_offsets", ElementType::u32, 1);
  require_length(ends, "lora_grouped_offsets", groups + 1);
  std::vector<uint32_t> borders;
  copy(ends, borders);
  require_count(inputs, "num_active_loras", groups);
  require_count(inputs, "batch_seq_len", T);
  check_derived(inputs, ids, borders, declarations_->adapters->count());
  if (borders[0] != 0) invalid("input 'lora_grouped_offsets' must start with 0, got ", borders[0]);
  size_t request = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const size_t i = static_cast<size_t>(group), first = request;
    while (request < static_cast<size_t>(B) && offsets[request] < borders[i + 1]) ++request;
    if (borders[i + 1] <= borders[i] || offsets[request] != borders[i + 1]) {
      invalid("input 'lora_grouped_offsets' must ascend over ends of requests, but has ", borders[i + 1], " after ",
              borders[i]);
    }
    const int32_t slot = ids.as<const int32_t>()[group];
    std::shared_ptr<const Adapter> adapter = declarations_->adapters->get(slot);
    if (adapter == nullptr) invalid("input 'lora_ids' names slot ", slot, ", which holds no adapter");
    const uint32_t rank = ranks.as<const uint32_t>()[group];
    if (adapter->rank() != int64_t{rank}) {
      invalid("input 'lora_ranks' says ", rank, " of slot ", slot, ", whose adapter has rank ", adapter->rank());
    }
    check_adapter(needs, *adapter);
    const int64_t begin = static_cast<int64_t>(first), end = static_cast<int64_t>(request);
    add_chunks(adapter_rows_[static_cast<size_t>(Rows::T)], *adapter, borders[i], borders[i + 1]);
    add_chunks(adapter_rows_[static_cast<size_t>(Rows::B)], *adapter, begin, end);
    add_chunks(adapter_rows_[static_cast<size_t>(Rows::R)], *adapter, begin * n, end * n);
    adapters_.push_back(std::move(adapter));
  }
}

void Step::release_adapters() {
  for (std::vector<AdapterRows>& rows : adapter_rows_) rows.clear();
  adapters_.clear();
}

void Step::bind_outputs(const Needs& needs, const std::vector<ArrayView>& arrays) {
  if (arrays.size() != needs.outputs.size()) {
    invalid("the program has ", needs.outputs.size(), " outputs, got ", arrays.size(), " arrays");
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    const OutputNeed& need = needs.outputs[i];
    std::vector<int64_t> shape = {need.is_offsets ? B + 1 : rows(need.rows)};
    if (!need.is_offsets) shape.push_back(need.width);
    if (arrays[i].type != need.type || arrays[i].shape != shape) {
      invalid("output ", i, " must be ", element_name(need.type), " ", shape_text(shape), ", got ",
              element_name(arrays[i].type), " ", shape_text(arrays[i].shape));
    }
  }
  outputs = arrays;
}

// Each buffer begins at a cache line, and has whole groups of 16 rows for kernels that compute so many at once.
void Step::lay_out_buffers() {
  const size_t count = declarations_->buffers.size();
  std::vector<int64_t> begin(count);
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    const BufferInfo& buffer = declarations_->buffers[i];
    begin[i] = total;
    int64_t bytes = 0;
    if (__builtin_mul_overflow((rows(buffer.rows) + 15) / 16 * 16, buffer.row_bytes, &bytes) ||
        __builtin_add_overflow(total, (bytes + 63) / 64 * 64, &total)) {
      throw std::bad_alloc();
    }
  }
  uint8_t* memory = arena_.reserve(total);
  buffers_.resize(count);
  for (size_t i = 0; i < count; ++i) buffers_[i] = memory + begin[i];
}

const AttentionPlan& Step::plan(const AttentionShape& shape) const {
  const auto found =
      std::find_if(plans_.begin(), plans_.end(), [&](const AttentionPlan& plan) { return plan.shape == shape; });
  return *found;  // Needs::attention has every shape of the program
}

KvView Step::kv(int64_t layer) const {
  const std::vector<int64_t>& shape = kv_blocks_.shape;
  const int64_t rows = layer * shape[3], to_values = shape[2] * shape[3];  // rows: one position with all its heads
  const int64_t row_bytes = shape[4] * shape[5] * element_bytes(kv_blocks_.type);
  KvView view = {};
  view.keys = kv_blocks_.data + rows * row_bytes;
  view.values = view.keys + to_values * row_bytes;
  switch (kv_blocks_.type) {
    case ElementType::f32: view.type = KvType::f32; break;
    case ElementType::f16: view.type = KvType::f16; break;
    case ElementType::bf16: view.type = KvType::bf16; break;
    default: view.type = KvType::i8; break;
  }
  if (view.type == KvType::i8) {
    view.key_scales = kv_scales_.as<float>() + rows * shape[4];
    view.value_scales = view.key_scales + to_values * shape[4];
  }
  view.page_rows = 2 * to_values;
  view.page_size = shape[3];
  view.table = table_.data();
  view.table_stride = table_stride_;
  return view;
}

}  // namespace puna
