// What a program declares before its instructions: buffers, weights, rope specifications; and what it then needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../quant/packed.h"
#include "adapter.h"
#include "array_view.h"
#include "rope.h"

namespace puna {

// How many rows a buffer has in a step: T tokens, B requests, or R = B * return_n_logits.
enum class Rows : uint8_t { T, B, R };

constexpr const char* rows_name(Rows rows) {
  constexpr const char* kNames[] = {"T", "B", "R"};
  return kNames[static_cast<int>(rows)];
}

struct BufferInfo {
  Rows rows;
  int64_t row_bytes;
};

// A packed matrix, or a vector of float32 (norm weights, biases).
struct Weight {
  std::shared_ptr<const PackedMatrix> matrix;
  std::vector<float> vector;
};

struct Declarations {
  std::vector<BufferInfo> buffers;
  std::vector<Weight> weights;
  std::vector<RopeSpec> ropes;
  std::shared_ptr<const AdapterSlots> adapters;  // null: the program has none
};

// The shape of attention that decides how its work is divided.
struct AttentionShape {
  int64_t num_heads, num_kv_heads, head_dim, window;
  bool operator==(const AttentionShape&) const = default;
};

struct OutputNeed {
  bool is_used = false;
  Rows rows = Rows::T;
  bool is_offsets = false;
  ElementType type = ElementType::f32;
  int64_t width = 0;  // columns, of float outputs
};

// An update that an adapter may have, and the sizes that it then must have.
struct LowRankNeed {
  int64_t layer, target;
  int64_t inputs;  // of a look-up: any number, the vocabulary's
  int64_t outputs;
  int64_t rank;    // at most
  bool is_lookup;
};

// What the instructions ask of the inputs and outputs of a step.
struct Needs {
  bool tokens = false;
  int64_t vocabulary = 0;           // the smallest of the embedding tables
  bool positions = false;           // cache_lengths
  bool cache = false;               // kv_blocks and lookup_table
  int64_t num_kv_heads = 0, head_dim = 0, layers = 0;
  bool count = false;               // return_n_logits
  bool last_rows = false;           // every request has at least one token
  std::vector<AttentionShape> attention;
  std::vector<OutputNeed> outputs;
  std::vector<LowRankNeed> low_ranks;
};

}  // namespace puna
