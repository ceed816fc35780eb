// Causal attention over the paged cache.
//
// For each query (a row and a head), by itself: the positions it sees are walked in splits of 512 and in each of them in
// blocks of 64, both aligned to absolute positions. Within a block
//   s[j] = scale * the sum of q[c] * k[j][c]             one chain of fma from 0, c ascending
//   m'   = max(m, s), f = exp(m - m'), p[j] = exp(s[j] - m')
//   l    = fma(l, f, reduce_add((p[0..15] + p[16..31]) + (p[32..47] + p[48..63])))   p = 0 where nothing is seen
//   acc  = acc * f, then fma(p[j], v[j], acc) for each seen j, ascending
// and splits are combined by attention_combine. Rows share a tile only to read keys and values once for all of them.
//
// Of an int8 cache, k[j] = dk[j] * int8 and v[j] = dv[j] * int8, one scale for each head. Sums of integers are exact:
//   q    = dq * int16, dq = max|q| / 16383               rounded to nearest even after multiplying by 1 / dq
//   s[j] = (float(sum of int16 * int8) * dk[j]) * (dq * scale)
//   w[j] = p[j] * dv[j] = dw * int16, dw = max w / 32767
//   acc  = fma(float(sum of int16 * int8), dw, acc * f)
#include "ops/attention_block.h"

namespace puna::PUNA_NS {
namespace {

PUNA_INLINE Range seen_by(const AttentionArgs& args, int64_t position) {
  const int64_t begin = args.window > 0 && position + 1 > args.window ? position + 1 - args.window : 0;
  return {begin, position + 1};
}

void locate(const AttentionArgs& args, const AttentionTile& tile, Range positions, Block& block) {
  const KvView& kv = args.kv;
  const uint32_t* pages = kv.table + tile.request * kv.table_stride;
  block.positions = positions;
  if (positions.is_empty()) return;
  const int64_t row_bytes = args.num_kv_heads * args.head_dim * kv_element_bytes(kv.type);
  int64_t row = 0;
  for (int64_t position = positions.begin; position < positions.end;) {
    const int64_t page = position / kv.page_size, page_end = (page + 1) * kv.page_size;
    const int64_t end = page_end < positions.end ? page_end : positions.end;
    row = pages[page] * kv.page_rows + position - page * kv.page_size;
    for (; position < end; ++position, ++row) block.rows[position % kBlock] = row;
    --row;
  }
  const Range places = block.places();
  for (int64_t j = 0; j < places.begin; ++j) block.rows[j] = row;
  for (int64_t j = places.end; j < kBlock; ++j) block.rows[j] = row;
  for (int64_t j = 0; j < kBlock; ++j) block.offsets[j] = block.rows[j] * row_bytes;
}

// Queries of a tile are numbered [KV head][row][head of the group].
int64_t queries_of(const AttentionTile& tile, const Shape& shape) {
  return (tile.kv_head_end - tile.kv_head_begin) * tile.rows * shape.group;
}
int64_t row_of(const AttentionTile& tile, const Shape& shape, int64_t query) {
  return query / shape.group % tile.rows;
}
// The column where its head begins.
int64_t column_of(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, int64_t query) {
  const int64_t kv_head = tile.kv_head_begin + query / (shape.group * tile.rows);
  return (kv_head * shape.group + query % shape.group) * args.head_dim;
}

void load_queries(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, const Scratch& scratch) {
  for (int64_t query = 0; query < queries_of(tile, shape); ++query) {
    const int64_t row = tile.first_row + row_of(tile, shape, query);
    const float* q = args.q + row * args.ldq + column_of(args, tile, shape, query);
    float* target = scratch.operands + query * shape.padded;
    for_columns(args.head_dim, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store(target + c, load_lanes(q + c, lanes));
    });
    scratch.operand_scale[query] = args.scale;
    if (args.kv.type != KvType::i8) continue;
    const Scale scale(largest_of(target, shape.padded), kQueryCodes);
    scratch.operand_scale[query] = scale.d * args.scale;
    int16_t codes[kMaxHeadDim];
    for (int64_t c = 0; c < shape.padded; c += 16) store_i16(codes + c, scale.code(load(target + c)));
    int16_t* places = reinterpret_cast<int16_t*>(target);
    for (int64_t c = 0; c < shape.padded; ++c) memcpy(places + operand_place(c), codes + c, sizeof(int16_t));
  }
}

// Whether a row sees anything of a split.
PUNA_INLINE bool is_seen(const AttentionArgs& args, int64_t position, int64_t split) {
  const Range seen = intersect(seen_by(args, position), {split * kAttentionSplit, (split + 1) * kAttentionSplit});
  return seen.begin < seen.end;
}

// The scales of one KV head at all places of a block; those of places that are not there are any.
void load_scales(const AttentionArgs& args, int64_t kv_head, const Block& block, const Scratch& scratch) {
  for (int64_t j = 0; j < kBlock; ++j) {
    const int64_t index = block.rows[j] * args.num_kv_heads + kv_head;
    scratch.key_scales[j] = args.kv.key_scales[index];
    scratch.value_scales[j] = args.kv.value_scales[index];
  }
}

// One block of one KV head: straight from the cache for few queries, else through scratch memory.
template <KvType type>
void walk_block(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, const Scratch& scratch,
                int64_t kv_head, const Block& block, const Block& next, float* states) {
  using Word = typename Cached<type>::Word;
  Head head;
  head.head_dim = args.head_dim;
  head.head_bytes = args.head_dim * Cached<type>::kBytes;
  head.keys = args.kv.keys + kv_head * head.head_bytes;
  head.values = args.kv.values + kv_head * head.head_bytes;
  head.offsets = block.offsets;
  head.next = next.positions.is_empty() ? block.offsets : next.offsets;
  if constexpr (type == KvType::i8) load_scales(args, kv_head, block, scratch);

  const int64_t count = tile.rows * shape.group, begin = block.positions.begin / kBlock * kBlock;
  for (int64_t row = 0, n = 0; row < tile.rows; ++row) {
    const Range positions = intersect(seen_by(args, tile.position + row), block.positions);
    for (int64_t i = 0; i < shape.group; ++i) scratch.seen[n++] = {positions.begin - begin, positions.end - begin};
  }
  if (count <= kTileQueries && shape.padded == args.head_dim) {
    attend<type, false>(shape, scratch, head, scratch.seen, count, states);
    return;
  }
  copy_keys<type>(head, block.places(), reinterpret_cast<Word*>(scratch.keys));
  copy_values<type>(head, block.places(), shape.padded, reinterpret_cast<Word*>(scratch.values));
  attend<type, true>(shape, scratch, head, scratch.seen, count, states);
}

// The block at a position, as far as the tile sees it; none past its end.
void next_block(const AttentionArgs& args, const AttentionTile& tile, int64_t begin, Range of_tile, Block& block) {
  locate(args, tile, intersect({begin, begin + kBlock}, of_tile), block);
}

// The states of all queries of the tile over one split.
void walk_split(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, const Scratch& scratch,
                int64_t split, float* states) {
  for (int64_t query = 0; query < queries_of(tile, shape); ++query) {
    float* state = states + query * shape.state;
    for (int64_t i = 0; i < shape.state; i += 16) store(state + i, zero());
    state[0] = -__builtin_inff();
  }
  const Range of_tile = {seen_by(args, tile.position).begin, seen_by(args, tile.position + tile.rows - 1).end};
  const Range of_split = intersect(of_tile, {split * kAttentionSplit, (split + 1) * kAttentionSplit});
  // What is read next lies in the next split where this tile goes on there.
  const int64_t ahead = of_tile.end < tile.split_end * kAttentionSplit ? of_tile.end : tile.split_end * kAttentionSplit;
  Block blocks[2];
  int64_t begin = of_split.begin / kBlock * kBlock;
  next_block(args, tile, begin, of_split, blocks[0]);
  for (int now = 0; begin < of_split.end; begin += kBlock, now = 1 - now) {
    next_block(args, tile, begin + kBlock, {of_tile.begin, ahead}, blocks[1 - now]);
    for (int64_t kv_head = tile.kv_head_begin; kv_head < tile.kv_head_end; ++kv_head) {
      const int64_t first = (kv_head - tile.kv_head_begin) * tile.rows * shape.group;
      Scratch of_head = scratch;
      of_head.operands += first * shape.padded;
      of_head.operand_scale += first;
      float* head_states = states + first * shape.state;
      const auto walk = [&]<KvType type>() {
        walk_block<type>(args, tile, shape, of_head, kv_head, blocks[now], blocks[1 - now], head_states);
      };
      switch (args.kv.type) {
        case KvType::f32: walk.template operator()<KvType::f32>(); break;
        case KvType::f16: walk.template operator()<KvType::f16>(); break;
        case KvType::bf16: walk.template operator()<KvType::bf16>(); break;
        case KvType::i8: walk.template operator()<KvType::i8>(); break;
      }
    }
  }
}

// total = total and split, both with what they see; the maximum of the two becomes the total's.
void combine(const Shape& shape, float* total, const float* split) {
  const float top = total[0] > split[0] ? total[0] : split[0];
  const float old_factor = top == total[0] ? 1.0f : exp1(total[0] - top);
  const float new_factor = top == split[0] ? 1.0f : exp1(split[0] - top);
  total[0] = top;
  total[1] = __builtin_fmaf(split[1], new_factor, total[1] * old_factor);
  const f32x16 old_factors = set1(old_factor), new_factors = set1(new_factor);
  for (int64_t i = 16; i < shape.state; i += 16) {
    store(total + i, fma(load(split + i), new_factors, mul(load(total + i), old_factors)));
  }
}

void copy_state(const Shape& shape, float* target, const float* source) {
  for (int64_t i = 0; i < shape.state; i += 16) store(target + i, load(source + i));
}

void write_out(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, int64_t query,
               const float* state) {
  const int64_t row = tile.first_row + row_of(tile, shape, query);
  float* out = args.out + row * args.ldo + column_of(args, tile, shape, query);
  const f32x16 sum = set1(state[1]);
  for_columns(args.head_dim, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    store_lanes(out + c, div(load(state + 16 + c), sum), lanes);
  });
}

}  // namespace

int64_t attention_scratch_floats(const AttentionArgs& args) {
  Scratch scratch;
  return divide_scratch(nullptr, shape_of(args), attention_tile_queries(args.num_heads), scratch);
}

void attention(const AttentionArgs& args, const AttentionTile& tile, float* scratch) {
  const Shape shape = shape_of(args);
  const int64_t queries = queries_of(tile, shape);
  Scratch parts;
  divide_scratch(scratch, shape, queries, parts);
  load_queries(args, tile, shape, parts);
  for (int64_t split = tile.split_begin; split < tile.split_end; ++split) {
    walk_split(args, tile, shape, parts, split, parts.split);
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t position = tile.position + row_of(tile, shape, query);
      if (!is_seen(args, position, split)) continue;
      const float* state = parts.split + query * shape.state;
      float* total = parts.totals + query * shape.state;
      if (split == tile.split_begin || !is_seen(args, position, split - 1)) {
        copy_state(shape, total, state);
      } else {
        combine(shape, total, state);
      }
    }
  }
  for (int64_t query = 0; query < queries; ++query) {
    write_out(args, tile, shape, query, parts.totals + query * shape.state);
  }
}

void attention_split(const AttentionArgs& args, const AttentionTile& tile, float* scratch, float* states) {
  const Shape shape = shape_of(args);
  Scratch parts;
  divide_scratch(scratch, shape, queries_of(tile, shape), parts);
  load_queries(args, tile, shape, parts);
  walk_split(args, tile, shape, parts, tile.split_begin, states);
}

void attention_combine(const AttentionArgs& args, const AttentionTile& tile, float* states) {
  const Shape shape = shape_of(args);
  const int64_t queries = queries_of(tile, shape);
  for (int64_t query = 0; query < queries; ++query) {
    const int64_t position = tile.position + row_of(tile, shape, query);
    float* total = nullptr;
    for (int64_t split = tile.split_begin; split < tile.split_end; ++split) {
      if (!is_seen(args, position, split)) continue;
      float* state = states + ((split - tile.split_begin) * queries + query) * shape.state;
      if (total == nullptr) {
        total = state;
      } else {
        combine(shape, total, state);
      }
    }
    write_out(args, tile, shape, query, total);
  }
}

}  // namespace puna::PUNA_NS
