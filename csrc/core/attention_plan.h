// How the attention of a step is divided among threads. None of it changes a bit of the result.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "declarations.h"
#include "kernel_table.h"

namespace puna {

struct AttentionPlan {
  AttentionShape shape;
  // Work that writes its rows of the output, largest first.
  std::vector<AttentionTile> whole;
  // Work over one split each, for steps with too few tiles to keep all threads busy: states go to
  // state_offset (in floats, by tile). Then one entry of `combined` for each tile that was split.
  std::vector<AttentionTile> splits;
  std::vector<int64_t> split_offset;
  std::vector<AttentionTile> combined;
  std::vector<int64_t> combined_offset;
  int64_t state_floats = 0;
  // Of one layer: query-key pairs of all heads, and positions that tiles read for each KV head.
  int64_t pairs = 0, positions_read = 0;

  // offsets [B + 1], cache_lengths [B].
  void build(const AttentionShape& shape_, std::span<const uint32_t> offsets, std::span<const uint32_t> cache_lengths,
             int threads);

 private:
  void add_splits(const AttentionTile& tile);
};

}  // namespace puna
