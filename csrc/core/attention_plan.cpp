#include "attention_plan.h"

#include <algorithm>

namespace puna {
namespace {

// Pieces for each thread, at least, where the work can be divided into so many: threads end together although pieces
// differ in size.
constexpr int64_t kPiecesPerThread = 4;

int64_t first_seen(const AttentionShape& shape, int64_t position) {
  return shape.window > 0 ? std::max<int64_t>(0, position + 1 - shape.window) : 0;
}

int64_t size_of(const AttentionTile& tile) {
  return tile.rows * (tile.kv_head_end - tile.kv_head_begin) * (tile.split_end - tile.split_begin);
}

}  // namespace

void AttentionPlan::build(const AttentionShape& shape_, std::span<const uint32_t> offsets,
                          std::span<const uint32_t> cache_lengths, int threads) {
  shape = shape_;
  whole.clear();
  splits.clear();
  split_offset.clear();
  combined.clear();
  combined_offset.clear();
  state_floats = pairs = positions_read = 0;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t tile_rows = std::max<int64_t>(1, kAttentionQueries / group);
  const int64_t requests = static_cast<int64_t>(cache_lengths.size());
  const int64_t pieces = kPiecesPerThread * threads;
  const auto tokens_of = [&](int64_t request) {
    return int64_t{offsets[static_cast<size_t>(request) + 1]} - offsets[static_cast<size_t>(request)];
  };
  const auto splits_seen = [&](int64_t begin, int64_t end) {
    return (end + kAttentionSplit - 1) / kAttentionSplit - begin / kAttentionSplit;
  };

  // Positions that all rows see; pieces of work if single rows were divided as far as they can be.
  int64_t work = 0, single_pieces = 0;
  for (int64_t request = 0; request < requests; ++request) {
    const int64_t tokens = tokens_of(request), cached = cache_lengths[static_cast<size_t>(request)];
    for (int64_t row = 0; row < tokens; ++row) work += cached + row + 1 - first_seen(shape, cached + row);
    if (tokens == 1) single_pieces += splits_seen(first_seen(shape, cached), cached + 1) * shape.num_kv_heads;
  }
  pairs = work * shape.num_heads;
  // The heads of a position lie next to each other: a single row reads as many of them at once as leave work for all.
  const int64_t most_heads = threads == 1 ? shape.num_kv_heads
                                          : std::clamp<int64_t>(single_pieces / pieces, 1, shape.num_kv_heads);
  const int64_t head_parts = (shape.num_kv_heads + most_heads - 1) / most_heads;

  for (int64_t request = 0; request < requests; ++request) {
    const int64_t tokens = tokens_of(request), cached = cache_lengths[static_cast<size_t>(request)];
    const int64_t first_row = offsets[static_cast<size_t>(request)];
    const int64_t parts = tokens == 1 ? head_parts : shape.num_kv_heads;
    for (int64_t row = 0; row < tokens; row += tile_rows) {
      AttentionTile tile = {};
      tile.first_row = first_row + row;
      tile.rows = std::min(tile_rows, tokens - row);
      tile.position = cached + row;
      tile.request = request;
      const int64_t begin = first_seen(shape, tile.position), end = tile.position + tile.rows;
      tile.split_begin = begin / kAttentionSplit;
      tile.split_end = tile.split_begin + splits_seen(begin, end);
      positions_read += end - begin;
      for (int64_t part = 0; part < parts; ++part) {
        tile.kv_head_begin = shape.num_kv_heads * part / parts;
        tile.kv_head_end = shape.num_kv_heads * (part + 1) / parts;
        const int64_t heads = tile.kv_head_end - tile.kv_head_begin;
        const bool is_large = tile.rows * (end - begin) * heads * pieces > work * shape.num_kv_heads;
        if (threads > 1 && is_large && tile.split_end - tile.split_begin > 1) {
          add_splits(tile);
        } else {
          whole.push_back(tile);
        }
      }
    }
  }
  // Long pieces first, so that threads end together.
  std::stable_sort(whole.begin(), whole.end(), [](const AttentionTile& a, const AttentionTile& b) {
    return size_of(a) > size_of(b);
  });
}

void AttentionPlan::add_splits(const AttentionTile& tile) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t queries = (tile.kv_head_end - tile.kv_head_begin) * tile.rows * group;
  combined.push_back(tile);
  combined_offset.push_back(state_floats);
  for (int64_t split = tile.split_begin; split < tile.split_end; ++split) {
    AttentionTile part = tile;
    part.split_begin = split;
    part.split_end = split + 1;
    splits.push_back(part);
    split_offset.push_back(state_floats);
    state_floats += queries * attention_state_floats(shape.head_dim);
  }
}

}  // namespace puna
