#include "attention_plan.h"

#include <algorithm>

namespace puna {
namespace {

constexpr int64_t kQueriesPerTile = 32;  // for each key that is read, where there are several rows
constexpr int64_t kPiecesPerThread = 3;  // at least, before single rows take several heads at once

int64_t first_seen(const AttentionShape& shape, int64_t position) {
  return shape.window > 0 ? std::max<int64_t>(0, position + 1 - shape.window) : 0;
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
  const int64_t tile_rows = std::max<int64_t>(1, kQueriesPerTile / group);
  const int64_t requests = static_cast<int64_t>(cache_lengths.size());
  const auto tokens_of = [&](int64_t request) {
    return int64_t{offsets[static_cast<size_t>(request) + 1]} - offsets[static_cast<size_t>(request)];
  };

  // Pieces of work if every tile had one KV head; and of them, those of single rows.
  int64_t tiles = 0, single_units = 0;
  const auto splits_seen = [&](int64_t begin, int64_t end) {
    return (end + kAttentionSplit - 1) / kAttentionSplit - begin / kAttentionSplit;
  };
  for (int64_t request = 0; request < requests; ++request) {
    const int64_t tokens = tokens_of(request), cached = cache_lengths[static_cast<size_t>(request)];
    tiles += (tokens + tile_rows - 1) / tile_rows * shape.num_kv_heads;
    if (tokens == 1) single_units += splits_seen(first_seen(shape, cached), cached + 1) * shape.num_kv_heads;
  }
  const bool has_few = threads > 1 && tiles < 4 * threads;
  // The heads of a position lie next to each other: a single row reads as many of them at once as leave work for all.
  const int64_t most_heads = std::clamp<int64_t>(single_units / (kPiecesPerThread * threads), 1, shape.num_kv_heads);

  for (int64_t request = 0; request < requests; ++request) {
    const int64_t tokens = tokens_of(request), cached = cache_lengths[static_cast<size_t>(request)];
    const int64_t first_row = offsets[static_cast<size_t>(request)];
    const int64_t heads = tokens == 1 ? most_heads : 1;
    for (int64_t row = 0; row < tokens; row += tile_rows) {
      AttentionTile tile = {};
      tile.first_row = first_row + row;
      tile.rows = std::min(tile_rows, tokens - row);
      tile.position = cached + row;
      tile.request = request;
      const int64_t begin = first_seen(shape, tile.position), end = tile.position + tile.rows;
      tile.split_begin = begin / kAttentionSplit;
      tile.split_end = tile.split_begin + splits_seen(begin, end);
      for (int64_t i = 0; i < tile.rows; ++i) {
        pairs += shape.num_heads * (tile.position + i + 1 - first_seen(shape, tile.position + i));
      }
      positions_read += end - begin;
      for (int64_t head = 0; head < shape.num_kv_heads; head += heads) {
        tile.kv_head_begin = head;
        tile.kv_head_end = std::min(head + heads, shape.num_kv_heads);
        if (has_few && tile.split_end - tile.split_begin > 1) {
          add_splits(tile);
        } else {
          whole.push_back(tile);
        }
      }
    }
  }
  // Long pieces first, so that threads end together.
  std::stable_sort(whole.begin(), whole.end(), [](const AttentionTile& a, const AttentionTile& b) {
    return a.rows * (a.split_end - a.split_begin) > b.rows * (b.split_end - b.split_begin);
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
