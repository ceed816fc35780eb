// Causal attention over the paged cache.
//
// For each query (a row and a head), by itself: the positions it sees are walked in splits of 512 and in each of them in
// blocks of 32, both aligned to absolute positions. Within a block
//   s[j] = reduce_add(lanes of q·k[j]) * scale           lanes: element mod 16, ascending
//   m'   = max(m, s), c = exp(m - m'), p[j] = exp(s[j] - m')
//   l    = fma(l, c, reduce_add(p[0..15] + p[16..31]))   positions that are not seen count as p = 0
//   acc  = acc * c, then fma(p[j], v[j], acc) for each seen j, ascending
// and splits are combined by attention_combine. Rows share a tile only to read keys and values once for all of them.
#include "ops/kernels.h"

#include "simd/reduce16.h"

namespace puna::PUNA_NS {
namespace {

constexpr int64_t kBlock = kAttentionBlock;
// Positions whose products fit into the registers, and queries whose sums do.
constexpr int kPositions = kParts == 1 ? 16 : 4;
constexpr int kQueries = kParts == 1 ? 2 : 1;

// What the functions below share about one call.
struct Shape {
  int64_t group;    // query heads of a KV head
  int64_t vectors;  // of 16 elements in a head, the last one padded with zeros
  int64_t padded;   // 16 * vectors
  int64_t state;    // floats of a state
};

Shape shape_of(const AttentionArgs& args) {
  const int64_t vectors = (args.head_dim + 15) / 16;
  return {args.num_heads / args.num_kv_heads, vectors, 16 * vectors, attention_state_floats(args.head_dim)};
}

// The parts of a thread's scratch memory.
struct Scratch {
  float* keys;     // [32][padded]
  float* values;   // [32][padded]
  float* queries;  // [queries][padded]
  float* weights;  // [queries][32]
  float* factors;  // [queries]: what the sums so far are multiplied with
  float* split;    // [queries] states
};

Scratch divide_scratch(float* scratch, const Shape& shape, int64_t queries) {
  Scratch s;
  s.keys = scratch;
  s.values = s.keys + kBlock * shape.padded;
  s.queries = s.values + kBlock * shape.padded;
  s.weights = s.queries + queries * shape.padded;
  s.factors = s.weights + queries * kBlock;
  s.split = s.factors + (queries + 15) / 16 * 16;
  return s;
}

// A half-open range of positions.
struct Range {
  int64_t begin, end;
};

PUNA_INLINE Range seen_by(const AttentionArgs& args, int64_t position) {
  const int64_t begin = args.window > 0 && position + 1 > args.window ? position + 1 - args.window : 0;
  return {begin, position + 1};
}

PUNA_INLINE Range intersect(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// Calls f(position, element) for the positions of a range; the keys of a position and a KV head begin `element` elements
// after kv.keys, its values after kv.values.
template <typename F>
PUNA_INLINE void for_positions(const AttentionArgs& args, const AttentionTile& tile, int64_t kv_head, Range positions,
                               F f) {
  const KvView& kv = args.kv;
  const uint32_t* pages = kv.table + tile.request * kv.table_stride;
  int64_t position = positions.begin;
  while (position < positions.end) {
    const int64_t page = position / kv.page_size, slot = position - page * kv.page_size;
    const int64_t page_end = (page + 1) * kv.page_size;
    const int64_t end = page_end < positions.end ? page_end : positions.end;
    int64_t element = pages[page] * kv.page_stride + slot * kv.slot_stride + kv_head * args.head_dim;
    for (; position < end; ++position, element += kv.slot_stride) f(position, element);
  }
}

template <KvType type>
PUNA_INLINE f32x16 load_kv(const uint8_t* base, int64_t element, int lanes) {
  if constexpr (type == KvType::f32) {
    return load_lanes(reinterpret_cast<const float*>(base) + element, lanes);
  } else {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(base) + element;
    if constexpr (type == KvType::f16) return lanes == 16 ? load_f16(p) : load_f16_n(p, lanes);
    return lanes == 16 ? load_bf16(p) : load_bf16_n(p, lanes);
  }
}

// Keys and values of the positions as float32, at their places of the block.
template <KvType type>
void load_block(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, int64_t kv_head,
                Range positions, const Scratch& scratch) {
  for_positions(args, tile, kv_head, positions, [&](int64_t position, int64_t element) __attribute__((always_inline)) {
    const int64_t place = position % kBlock * shape.padded;
    for_columns(args.head_dim, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store(scratch.keys + place + c, load_kv<type>(args.kv.keys, element + c, lanes));
      store(scratch.values + place + c, load_kv<type>(args.kv.values, element + c, lanes));
    });
  });
}

// Asks for the lines of positions that come next: pages lie anywhere, which no prefetcher foresees. Into the second
// level: rows that are a power of two apart would push each other out of the first. Inline, because gcc removes calls of
// a function that does nothing else.
PUNA_INLINE void prefetch(const AttentionArgs& args, const AttentionTile& tile, int64_t kv_head, Range positions) {
  const int64_t element_bytes = args.kv.type == KvType::f32 ? 4 : 2;
  for_positions(args, tile, kv_head, positions, [&](int64_t, int64_t element) __attribute__((always_inline)) {
    const int64_t offset = element * element_bytes;
    for (int64_t byte = 0; byte < args.head_dim * element_bytes; byte += 64) {
      __builtin_prefetch(args.kv.keys + offset + byte, 0, 2);
      __builtin_prefetch(args.kv.values + offset + byte, 0, 2);
    }
  });
}

// q·k of sixteen keys.
f32x16 dot16(const float* q, const float* keys, const Shape& shape) {
  f32x16 sums[16];
#pragma GCC unroll 16
  for (int first = 0; first < 16; first += kPositions) {
    f32x16 acc[kPositions];
#pragma GCC unroll 16
    for (int n = 0; n < kPositions; ++n) acc[n] = zero();
    for (int64_t c = 0; c < shape.padded; c += 16) {
      const f32x16 part_of_q = load(q + c);
#pragma GCC unroll 16
      for (int n = 0; n < kPositions; ++n) {
        acc[n] = fma(part_of_q, load(keys + (first + n) * shape.padded + c), acc[n]);
      }
    }
#pragma GCC unroll 16
    for (int n = 0; n < kPositions; ++n) sums[first + n] = acc[n];
  }
  return reduce_add16(sums);
}

PUNA_INLINE float exp1(float x) {
  float lanes[16];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

// Scores of one query over the places `seen` of a block, -infinity at the others.
void score(const AttentionArgs& args, const Shape& shape, const Scratch& scratch, int64_t query, Range seen) {
  const float* q = scratch.queries + query * shape.padded;
  float* scores = scratch.weights + query * kBlock;
  const f32x16 scale = set1(args.scale), nothing = set1(-__builtin_inff());
  for (int64_t half = 0; half < kBlock; half += 16) {
    const bool is_seen = seen.begin < half + 16 && seen.end > half;
    store(scores + half, is_seen ? mul(dot16(q, scratch.keys + half * shape.padded, shape), scale) : nothing);
  }
  for (int64_t j = 0; j < seen.begin; ++j) scores[j] = -__builtin_inff();
  for (int64_t j = seen.end; j < kBlock; ++j) scores[j] = -__builtin_inff();
}

// Scores of one query become weights; updates maximum and sum of its state.
void weigh(const Scratch& scratch, int64_t query, float* state) {
  float* weights = scratch.weights + query * kBlock;
  const f32x16 s0 = load(weights), s1 = load(weights + 16);
  const float block_top = reduce_max(max(s0, s1)), old_top = state[0];
  const float top = old_top > block_top ? old_top : block_top;
  const float factor = top == old_top ? 1.0f : exp1(old_top - top);
  const f32x16 p0 = exp(sub(s0, set1(top))), p1 = exp(sub(s1, set1(top)));
  store(weights, p0);
  store(weights + 16, p1);
  state[0] = top;
  state[1] = __builtin_fmaf(state[1], factor, reduce_add(add(p0, p1)));
  scratch.factors[query] = factor;
}

// acc = acc * factor + sum of p[j] v[j] for N queries and V vectors of their elements.
template <int N, int V>
PUNA_INLINE void accumulate_part(const Shape& shape, const Scratch& scratch, int64_t query, int64_t c, Range seen,
                                 float* states) {
  f32x16 acc[N][V];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const f32x16 factor = set1(scratch.factors[query + n]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[n][v] = mul(load(states + n * shape.state + 16 + c + 16 * v), factor);
  }
  const float* weights = scratch.weights + query * kBlock;
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    const float* value = scratch.values + j * shape.padded + c;
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const f32x16 p = set1(weights[n * kBlock + j]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[n][v] = fma(p, load(value + 16 * v), acc[n][v]);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(states + n * shape.state + 16 + c + 16 * v, acc[n][v]);
  }
}

template <int N>
void accumulate(const Shape& shape, const Scratch& scratch, int64_t query, Range seen, float* states) {
  int64_t c = 0;
  for (; c + 64 <= shape.padded; c += 64) accumulate_part<N, 4>(shape, scratch, query, c, seen, states);
  if (c + 32 <= shape.padded) {
    accumulate_part<N, 2>(shape, scratch, query, c, seen, states);
    c += 32;
  }
  if (c < shape.padded) accumulate_part<N, 1>(shape, scratch, query, c, seen, states);
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
    float* target = scratch.queries + query * shape.padded;
    for_columns(args.head_dim, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store(target + c, load_lanes(q + c, lanes));
    });
  }
}

// Whether a row sees anything of a split.
PUNA_INLINE bool is_seen(const AttentionArgs& args, int64_t position, int64_t split) {
  const Range seen = intersect(seen_by(args, position), {split * kAttentionSplit, (split + 1) * kAttentionSplit});
  return seen.begin < seen.end;
}

// One block of one KV head: the queries from `first` on. Asks for the positions `next` a few at a time meanwhile: a
// processor waits for few lines at once.
void walk_block(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, const Scratch& scratch,
                int64_t kv_head, Range positions, Range next, int64_t first, float* states) {
  switch (args.kv.type) {
    case KvType::f32:
      load_block<KvType::f32>(args, tile, shape, kv_head, positions, scratch);
      break;
    case KvType::f16:
      load_block<KvType::f16>(args, tile, shape, kv_head, positions, scratch);
      break;
    case KvType::bf16:
      load_block<KvType::bf16>(args, tile, shape, kv_head, positions, scratch);
      break;
  }
  const int64_t block = positions.begin / kBlock * kBlock;
  const int64_t pieces = 2 * tile.rows * shape.group;
  int64_t piece = 0;
  const auto ask = [&]() __attribute__((always_inline)) {
    const int64_t begin = block + kBlock + kBlock * piece / pieces;
    ++piece;
    prefetch(args, tile, kv_head, intersect(next, {begin, block + kBlock + kBlock * piece / pieces}));
  };
  for (int64_t row = 0; row < tile.rows; ++row) {
    Range seen = intersect(seen_by(args, tile.position + row), positions);
    if (seen.begin >= seen.end) continue;
    seen = {seen.begin - block, seen.end - block};
    int64_t query = first + row * shape.group;
    const int64_t end = query + shape.group;
    for (int64_t q = query; q < end; ++q) {
      ask();
      score(args, shape, scratch, q, seen);
    }
    for (int64_t q = query; q < end; ++q) weigh(scratch, q, states + q * shape.state);
    for (; query + kQueries <= end; query += kQueries) {
      for (int i = 0; i < kQueries; ++i) ask();
      accumulate<kQueries>(shape, scratch, query, seen, states + query * shape.state);
    }
    for (; query < end; ++query) {
      ask();
      accumulate<1>(shape, scratch, query, seen, states + query * shape.state);
    }
  }
}

// The states of all queries of the tile over one split.
void walk_split(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, const Scratch& scratch,
                int64_t split, float* states) {
  for (int64_t query = 0; query < queries_of(tile, shape); ++query) {
    float* state = states + query * shape.state;
    for (int64_t i = 0; i < shape.state; i += 16) store(state + i, zero());
    state[0] = -__builtin_inff();
  }
  const Range of_split = {split * kAttentionSplit, (split + 1) * kAttentionSplit};
  const Range of_tile = intersect(
      {seen_by(args, tile.position).begin, seen_by(args, tile.position + tile.rows - 1).end}, of_split);
  for (int64_t block = of_tile.begin / kBlock * kBlock; block < of_tile.end; block += kBlock) {
    const Range positions = intersect({block, block + kBlock}, of_tile);
    const Range next = intersect({block + kBlock, block + 2 * kBlock}, of_tile);
    for (int64_t kv_head = tile.kv_head_begin; kv_head < tile.kv_head_end; ++kv_head) {
      const int64_t first = (kv_head - tile.kv_head_begin) * tile.rows * shape.group;
      walk_block(args, tile, shape, scratch, kv_head, positions, next, first, states);
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
  const Shape shape = shape_of(args);
  const int64_t queries = attention_tile_queries(args.num_heads);
  return 2 * kBlock * shape.padded + queries * (shape.padded + kBlock + 2 * shape.state) + (queries + 15) / 16 * 16;
}

void attention(const AttentionArgs& args, const AttentionTile& tile, float* scratch) {
  const Shape shape = shape_of(args);
  const int64_t queries = queries_of(tile, shape);
  const Scratch parts = divide_scratch(scratch, shape, queries);
  float* totals = parts.split + queries * shape.state;
  load_queries(args, tile, shape, parts);
  for (int64_t split = tile.split_begin; split < tile.split_end; ++split) {
    walk_split(args, tile, shape, parts, split, parts.split);
    for (int64_t query = 0; query < queries; ++query) {
      const int64_t position = tile.position + row_of(tile, shape, query);
      if (!is_seen(args, position, split)) continue;
      const float* state = parts.split + query * shape.state;
      float* total = totals + query * shape.state;
      if (split == tile.split_begin || !is_seen(args, position, split - 1)) {
        copy_state(shape, total, state);
      } else {
        combine(shape, total, state);
      }
    }
  }
  for (int64_t query = 0; query < queries; ++query) {
    write_out(args, tile, shape, query, totals + query * shape.state);
  }
}

void attention_split(const AttentionArgs& args, const AttentionTile& tile, float* scratch, float* states) {
  const Shape shape = shape_of(args);
  const Scratch parts = divide_scratch(scratch, shape, queries_of(tile, shape));
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
