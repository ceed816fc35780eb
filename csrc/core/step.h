// One execution of a program: its checked inputs, and everything the instructions read of them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "attention_plan.h"
#include "declarations.h"
#include "kernel_table.h"
#include "memory.h"

namespace puna {

// Arrays by name, as the caller gave them.
using Inputs = std::map<std::string, ArrayView>;

// The frequencies of each request for one rope specification.
struct RopeFrequencies {
  std::vector<const float*> of_request;
  std::vector<std::vector<float>> storage;
};

// Rows of one kind that have one adapter.
struct AdapterRows {
  const Adapter* adapter;
  int64_t first, count;
};

class Step {
 public:
  // Checks the inputs and outputs against what the program needs, and copies the small ones, so that nobody can change
  // them under way. Throws std::invalid_argument naming the input.
  void bind(const Declarations& declarations, const Needs& needs, const Inputs& inputs,
            const std::vector<ArrayView>& outputs, int threads);

  int64_t rows(Rows kind) const { return kind == Rows::T ? T : kind == Rows::B ? B : R; }
  uint8_t* bytes_of(int64_t buffer) const { return buffers_[static_cast<size_t>(buffer)]; }
  float* floats_of(int64_t buffer) const { return reinterpret_cast<float*>(bytes_of(buffer)); }
  int64_t ld(int64_t buffer) const { return declarations_->buffers[static_cast<size_t>(buffer)].row_bytes / 4; }
  Rows rows_kind(int64_t buffer) const { return declarations_->buffers[static_cast<size_t>(buffer)].rows; }
  int64_t rows_of(int64_t buffer) const { return rows(rows_kind(buffer)); }
  const std::vector<AdapterRows>& adapter_rows(Rows kind) const { return adapter_rows_[static_cast<size_t>(kind)]; }
  // Lets go of the adapters, which may have been unloaded meanwhile.
  void release_adapters();
  const Weight& weight(int64_t index) const { return declarations_->weights[static_cast<size_t>(index)]; }
  const RopeSpec& rope(int64_t index) const { return declarations_->ropes[static_cast<size_t>(index)]; }
  const RopeFrequencies& frequencies(int64_t rope) const { return ropes_[static_cast<size_t>(rope)]; }
  const AttentionPlan& plan(const AttentionShape& shape) const;
  float* attention_states() const { return reinterpret_cast<float*>(states_.data()); }
  KvView kv(int64_t layer) const;

  int64_t T = 0, B = 0, R = 0, n = 0;
  std::vector<int64_t> tokens;             // [T]
  std::vector<uint32_t> offsets;           // [B + 1]
  std::vector<uint32_t> cache_lengths;     // [B]
  std::vector<uint32_t> request_of;        // [T]
  std::vector<uint32_t> position_of;       // [T]
  std::vector<ArrayView> outputs;

 private:
  void bind_tokens(const Needs& needs, const Inputs& inputs);
  void bind_cache(const Needs& needs, const Inputs& inputs);
  void bind_adapters(const Needs& needs, const Inputs& inputs);
  void check_pages(int64_t pages) const;
  void bind_positions(const Inputs& inputs);
  void bind_outputs(const Needs& needs, const std::vector<ArrayView>& arrays);
  void lay_out_buffers();

  const Declarations* declarations_ = nullptr;
  std::vector<uint8_t*> buffers_;
  Memory arena_;
  Memory states_;
  std::vector<uint32_t> table_;            // [B, table_stride]
  int64_t table_stride_ = 0;
  ArrayView kv_blocks_;
  ArrayView kv_scales_;                    // of an int8 cache
  std::vector<RopeFrequencies> ropes_;
  std::vector<AttentionPlan> plans_;
  std::vector<std::shared_ptr<const Adapter>> adapters_;     // of the groups
  std::array<std::vector<AdapterRows>, 3> adapter_rows_;     // by Rows
};

}  // namespace puna
