// Causal attention over the paged cache.
//
// For each query (a row and a head), by itself: the positions it sees are walked in splits of 512 and in each of them in
// blocks of 32, both aligned to absolute positions. Within a block
//   s[j] = reduce_add(lanes of q·k[j]) * scale           lanes: element mod 16, ascending
//   m'   = max(m, s), c = exp(m - m'), p[j] = exp(s[j] - m')
//   l    = fma(l, c, reduce_add(p[0..15] + p[16..31]))   positions that are not seen count as p = 0
//   acc  = acc * c, then fma(p[j], v[j], acc) for each seen j, ascending
// and splits are combined by attention_combine. Rows share a tile only to read keys and values once for all of them.
#include "ops/attention_block.h"

namespace puna::PUNA_NS {
namespace {

PUNA_INLINE Range seen_by(const AttentionArgs& args, int64_t position) {
  const int64_t begin = args.window > 0 && position + 1 > args.window ? position + 1 - args.window : 0;
  return {begin, position + 1};
}

// Positions of one block, and where their keys begin in kv.keys (and values in kv.values): elements of KV head 0, by
// place. Places that are not there have those of one that is.
struct Block {
  Range positions;
  int64_t elements[kBlock];

  Range places() const {
    const int64_t begin = positions.begin / kBlock * kBlock;
    return {positions.begin - begin, positions.end - begin};
  }
};

void locate(const AttentionArgs& args, const AttentionTile& tile, Range positions, Block& block) {
  const KvView& kv = args.kv;
  const uint32_t* pages = kv.table + tile.request * kv.table_stride;
  block.positions = positions;
  int64_t element = 0;
  for (int64_t position = positions.begin; position < positions.end;) {
    const int64_t page = position / kv.page_size, page_end = (page + 1) * kv.page_size;
    const int64_t end = page_end < positions.end ? page_end : positions.end;
    element = pages[page] * kv.page_stride + (position - page * kv.page_size) * kv.slot_stride;
    for (; position < end; ++position, element += kv.slot_stride) block.elements[position % kBlock] = element;
    element -= kv.slot_stride;
  }
  if (positions.begin >= positions.end) return;
  const Range places = block.places();
  for (int64_t j = 0; j < places.begin; ++j) block.elements[j] = element;
  for (int64_t j = places.end; j < kBlock; ++j) block.elements[j] = element;
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

// Keys and values of one KV head as float32, at their places.
template <KvType type>
void load_block(const AttentionArgs& args, const Shape& shape, int64_t kv_head, const Block& block,
                const Scratch& scratch) {
  const Range places = block.places();
  for (int64_t j = places.begin; j < places.end; ++j) {
    const int64_t element = block.elements[j] + kv_head * args.head_dim;
    for_columns(args.head_dim, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store(scratch.keys + j * shape.padded + c, load_kv<type>(args.kv.keys, element + c, lanes));
      store(scratch.values + j * shape.padded + c, load_kv<type>(args.kv.values, element + c, lanes));
    });
  }
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

// Asks for the lines of one KV head in the next block, a few at every call: pages lie anywhere, which no prefetcher
// foresees, and a processor waits for few lines at once. Into the second level: rows that are a power of two apart would
// push each other out of the first. Inline, because gcc removes calls of a function that does nothing else.
class Ask {
 public:
  Ask(const AttentionArgs& args, const Block& next, int64_t kv_head, int64_t calls)
      : element_bytes_(args.kv.type == KvType::f32 ? 4 : 2),
        row_bytes_(args.head_dim * element_bytes_),
        keys_(args.kv.keys + kv_head * row_bytes_),
        values_(args.kv.values + kv_head * row_bytes_),
        elements_(next.elements),
        each_((kBlock + calls - 1) / calls) {
    if (next.positions.begin >= next.positions.end) return;
    place_ = next.places().begin;
    end_ = next.places().end;
  }
  [[gnu::always_inline]] void operator()() {
    for (int64_t i = 0; i < each_ && place_ < end_; ++i, ++place_) {
      const int64_t offset = elements_[place_] * element_bytes_;
      for (int64_t byte = 0; byte < row_bytes_; byte += 64) {
        __builtin_prefetch(keys_ + offset + byte, 0, 2);
        __builtin_prefetch(values_ + offset + byte, 0, 2);
      }
    }
  }

 private:
  const int64_t element_bytes_, row_bytes_;
  const uint8_t* const keys_;
  const uint8_t* const values_;
  const int64_t* const elements_;
  const int64_t each_;
  int64_t place_ = 0, end_ = 0;
};

// The queries of one KV head over one block; `first` is the number of its first query in the tile.
template <class Rows>
void walk_queries(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, const Scratch& scratch,
                  const Rows& keys, const Rows& values, const Block& block, int64_t first, float* states, Ask& ask) {
  const int64_t begin = block.positions.begin / kBlock * kBlock;
  const auto places_seen = [&](int64_t row) {
    const Range seen = intersect(seen_by(args, tile.position + row), block.positions);
    return Range{seen.begin - begin, seen.end - begin};
  };
  const auto run = [&]<int N>(int64_t query, Range seen) {
    attend<N>(shape, scratch, keys, values, args.scale, query, seen, states + query * shape.state, ask);
  };
  int64_t row = 0;
  while (row < tile.rows) {  // rows that see the same places go together
    const Range seen = places_seen(row);
    int64_t query = first + row * shape.group;
    do {
      ++row;
    } while (row < tile.rows && places_seen(row).begin == seen.begin && places_seen(row).end == seen.end);
    if (seen.begin >= seen.end) continue;
    const int64_t end = first + row * shape.group;
    for (; query + kQueries <= end; query += kQueries) run.template operator()<kQueries>(query, seen);
    switch (end - query) {
      case 3:
        run.template operator()<3>(query, seen);
        break;
      case 2:
        run.template operator()<2>(query, seen);
        break;
      case 1:
        run.template operator()<1>(query, seen);
        break;
      default:
        break;
    }
  }
}

// One block of one KV head, straight from the cache for few queries, else through scratch memory.
template <KvType type>
void walk_block(const AttentionArgs& args, const AttentionTile& tile, const Shape& shape, const Scratch& scratch,
                int64_t kv_head, const Block& block, int64_t first, float* states, Ask& ask) {
  if constexpr (kShareLoads) {
    if (tile.rows * shape.group <= kQueries && shape.padded == args.head_dim) {
      constexpr int64_t kBytes = type == KvType::f32 ? 4 : 2;
      const int64_t head = kv_head * args.head_dim * kBytes;
      const CacheRows<type> keys = {args.kv.keys + head, block.elements};
      const CacheRows<type> values = {args.kv.values + head, block.elements};
      walk_queries(args, tile, shape, scratch, keys, values, block, first, states, ask);
      return;
    }
  }
  load_block<type>(args, shape, kv_head, block, scratch);
  const ScratchRows keys = {scratch.keys, shape.padded}, values = {scratch.values, shape.padded};
  walk_queries(args, tile, shape, scratch, keys, values, block, first, states, ask);
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
  const int64_t queries = tile.rows * shape.group;
  const int64_t calls = 8 * (kShareLoads ? (queries + kQueries - 1) / kQueries : queries);
  Block blocks[2];
  int64_t begin = of_tile.begin / kBlock * kBlock;
  locate(args, tile, intersect({begin, begin + kBlock}, of_tile), blocks[0]);
  for (int now = 0; begin < of_tile.end; begin += kBlock, now = 1 - now) {
    const Block& block = blocks[now];
    Block& next = blocks[1 - now];
    locate(args, tile, intersect({begin + kBlock, begin + 2 * kBlock}, of_tile), next);
    for (int64_t kv_head = tile.kv_head_begin; kv_head < tile.kv_head_end; ++kv_head) {
      const int64_t first = (kv_head - tile.kv_head_begin) * queries;
      Ask ask(args, next, kv_head, calls);
      switch (args.kv.type) {
        case KvType::f32:
          walk_block<KvType::f32>(args, tile, shape, scratch, kv_head, block, first, states, ask);
          break;
        case KvType::f16:
          walk_block<KvType::f16>(args, tile, shape, scratch, kv_head, block, first, states, ask);
          break;
        case KvType::bf16:
          walk_block<KvType::bf16>(args, tile, shape, scratch, kv_head, block, first, states, ask);
          break;
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
