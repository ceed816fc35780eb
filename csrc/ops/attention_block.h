// One block of attention for the queries of one KV head: scores, weights, weighted sums of values.
#pragma once

#include "ops/attention_cache.h"
#include "ops/scale.h"

namespace puna::PUNA_NS {
namespace {

// The size of a tile of products, in queries and in vectors: sixteen sums in registers of 512 bits, eight in 256.
constexpr int kTileQueries = 4;
constexpr int kTileVectors = kParts == 1 && kUnroll > 1 ? 4 : 1;

// Codes of int8 attention: of queries, such that sums over 1024 elements fit int32; of weights.
constexpr float kQueryCodes = 16383.0f, kWeightCodes = 32767.0f;

// What the functions below share about one call.
struct Shape {
  float softcap;    // of scores, 0: none
  int64_t group;    // query heads of a KV head
  int64_t head_dim;
  int64_t padded;   // head_dim rounded up to 16
  int64_t state;    // floats of a state
};

Shape shape_of(const AttentionArgs& args) {
  const int64_t padded = (args.head_dim + 15) / 16 * 16;
  return {args.softcap, args.num_heads / args.num_kv_heads, args.head_dim, padded, attention_state_floats(args.head_dim)};
}

// The parts of a thread's scratch memory; each begins at a cache line.
struct Scratch {
  float* keys;           // [depth][64]
  float* values;         // [64][padded], or of pairs [32][padded]
  float* operands;       // [queries of the tile][padded]: elements, or pairs of codes
  float* operand_scale;  // [queries of the tile]: factor of scores
  float* split;          // [queries of the tile] states
  float* totals;         // [queries of the tile] states
  float* scores;         // [queries][64], then weights
  float* codes;          // [queries][32]: pairs of codes of weights
  float* weight_scale;   // [queries]: factor of sums of codes
  float* factors;        // [queries]: what the sums so far are multiplied with
  float* key_scales;     // [64]
  float* value_scales;   // [64]
  Range* seen;           // [queries]
};

// Divides `memory`, or only counts its floats where that is null.
int64_t divide_scratch(float* memory, const Shape& shape, int64_t queries, Scratch& scratch) {
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* part = memory == nullptr ? nullptr : memory + used;
    used += (floats + 15) / 16 * 16;
    return part;
  };
  scratch.keys = take(kBlock * shape.padded);
  scratch.values = take(kBlock * shape.padded);
  scratch.operands = take(queries * shape.padded);
  scratch.operand_scale = take(queries);
  scratch.split = take(queries * shape.state);
  scratch.totals = take(queries * shape.state);
  scratch.scores = take(queries * kBlock);
  scratch.codes = take(queries * kBlock / 2);
  scratch.weight_scale = take(queries);
  scratch.factors = take(queries);
  scratch.key_scales = take(kBlock);
  scratch.value_scales = take(kBlock);
  scratch.seen = reinterpret_cast<Range*>(take(queries * static_cast<int64_t>(sizeof(Range) / sizeof(float))));
  return used;
}

PUNA_INLINE float exp1(float x) {
  float lanes[16];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

template <KvType type>
constexpr bool kIsInt8 = type == KvType::i8;

// ---- products ---------------------------------------------------------------------------------------------------------

// acc[n][v] += the sum over steps begin … end-1 of matrix(step, v) * operand[n][step].
template <int N, int V, class Vector, class Word, class Matrix>
PUNA_INLINE void multiply(Vector (*acc)[V], const Matrix& matrix, const Word* operand, int64_t stride, int64_t begin,
                          int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    Vector m[V];
#pragma GCC unroll kUnroll
    for (int v = 0; v < V; ++v) m[v] = matrix(k, v);
#pragma GCC unroll kUnroll
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
      for (int v = 0; v < V; ++v) acc[n][v] = step(acc[n][v], m[v], operand + n * stride + k);
    }
  }
}

template <int N, int V, class Vector>
PUNA_INLINE void clear(Vector (*acc)[V]) {
#pragma GCC unroll kUnroll
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < V; ++v) acc[n][v] = Vector{};
  }
}

// ---- scores -----------------------------------------------------------------------------------------------------------

PUNA_INLINE f32x16 score_of(const Scratch& scratch, f32x16 sum, int64_t query, int) {
  return mul(sum, set1(scratch.operand_scale[query]));
}
PUNA_INLINE f32x16 score_of(const Scratch& scratch, i32x16 sum, int64_t query, int group) {
  return mul(mul(cvt_f32(sum), load(scratch.key_scales + 16 * group)), set1(scratch.operand_scale[query]));
}

// V groups of 16 places for N queries.
template <KvType type, int N, int V, bool IsCopied>
[[gnu::noinline]] void score(const Shape& shape, const Scratch& scratch, const Head& head, int group, int64_t query) {
  using Word = typename Cached<type>::Word;
  const Word* operand = reinterpret_cast<const Word*>(scratch.operands) + query * shape.padded;
  const int64_t depth = Cached<type>::depth(shape.head_dim);
  typename Cached<type>::Vector acc[N][V];
  clear<N, V>(acc);
  if constexpr (IsCopied) {
    const Word* keys = reinterpret_cast<const Word*>(scratch.keys) + 16 * group;
    multiply<N, V>(
        acc, [&](int64_t k, int v) __attribute__((always_inline)) { return load_words(keys + k * kBlock + 16 * v); },
        operand, shape.padded, 0, depth);
  } else {
    for_key_columns<type, V>(head, group, [&](int64_t k, auto* columns) __attribute__((always_inline)) {
#pragma GCC unroll kUnroll
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
        for (int v = 0; v < V; ++v) acc[n][v] = step(acc[n][v], columns[v], operand + n * shape.padded + k);
      }
    });
  }
#pragma GCC unroll kUnroll
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < V; ++v) {
      store(scratch.scores + (query + n) * kBlock + 16 * (group + v), score_of(scratch, acc[n][v], query + n, group + v));
    }
  }
}

template <KvType type, int N, bool IsCopied>
void score_groups(const Shape& shape, const Scratch& scratch, const Head& head, Range places, int64_t query) {
  int group = static_cast<int>(places.begin / 16);
  if constexpr (kTileVectors > 1) {
    constexpr int kTogether = IsCopied ? kTileVectors : 2;
    for (; 16 * (group + kTogether - 1) < places.end; group += kTogether) {
      score<type, N, kTogether, IsCopied>(shape, scratch, head, group, query);
    }
  }
  for (; 16 * group < places.end; ++group) score<type, N, 1, IsCopied>(shape, scratch, head, group, query);
}

// ---- weights ----------------------------------------------------------------------------------------------------------

// Scores are capped where they are to be; those of places that are not seen become -infinity. Notes the new maximum in the state, and in `factors` how far the
// old one was above.
void find_top(const Shape& shape, const Scratch& scratch, int64_t query, Range seen, float* state) {
  float* scores = scratch.scores + query * kBlock;
  if (shape.softcap > 0) {
    const f32x16 cap = set1(shape.softcap);
    for (int64_t j = 0; j < kBlock; j += 16) store(scores + j, mul(cap, tanh(div(load(scores + j), cap))));
  }
  for (int64_t j = 0; j < seen.begin; ++j) scores[j] = -__builtin_inff();
  for (int64_t j = seen.end; j < kBlock; ++j) scores[j] = -__builtin_inff();
  const f32x16 top = max(max(load(scores), load(scores + 16)), max(load(scores + 32), load(scores + 48)));
  const float block_top = reduce_max(top), old_top = state[0];
  state[0] = old_top > block_top ? old_top : block_top;
  // Equal ones may be infinite, and then differ by no number.
  scratch.factors[query] = old_top == state[0] ? 0.0f : old_top - state[0];
}

// Scores become weights; updates the sum in the state.
template <KvType type>
void weigh(const Scratch& scratch, int64_t query, float factor, float* state) {
  float* weights = scratch.scores + query * kBlock;
  const f32x16 top = set1(state[0]);
  f32x16 p[kGroups];
#pragma GCC unroll kUnroll
  for (int i = 0; i < kGroups; ++i) p[i] = exp_of_negative(sub(load(weights + 16 * i), top));
  state[1] = __builtin_fmaf(state[1], factor, reduce_add(add(add(p[0], p[1]), add(p[2], p[3]))));
  if constexpr (kIsInt8<type>) {
    // A place that is not seen has weight zero whatever its scale is.
#pragma GCC unroll kUnroll
    for (int i = 0; i < kGroups; ++i) {
      const f32x16 w = mul(p[i], load(scratch.value_scales + 16 * i));
      store(weights + 16 * i, select_lt(zero(), p[i], w, p[i]));
    }
    const Scale scale(largest_of(weights, kBlock), kWeightCodes);
    scratch.weight_scale[query] = scale.d;
    int16_t* codes = reinterpret_cast<int16_t*>(scratch.codes + query * (kBlock / 2));
#pragma GCC unroll kUnroll
    for (int i = 0; i < kGroups; ++i) store_i16(codes + 16 * i, scale.code(load(weights + 16 * i)));
  } else {
#pragma GCC unroll kUnroll
    for (int i = 0; i < kGroups; ++i) store(weights + 16 * i, p[i]);
  }
}

// ---- sums of values ---------------------------------------------------------------------------------------------------

// acc = acc * factor + the sum over places of weight * value, for N queries and V vectors of elements from c on.
template <KvType type, int N, int V, bool IsCopied>
PUNA_INLINE void accumulate_part(const Shape& shape, const Scratch& scratch, const Head& head, int64_t query,
                                 Range places, const float* factors, int64_t c, float* states) {
  using Word = typename Cached<type>::Word;
  constexpr int64_t kPositions = Cached<type>::kPositions;
  const int64_t begin = places.begin / kPositions, end = (places.end + kPositions - 1) / kPositions;
  const Word* values = reinterpret_cast<const Word*>(scratch.values) + c;
  const auto matrix = [&](int64_t k, int v) __attribute__((always_inline)) {
    if constexpr (IsCopied) return load_words(values + k * shape.padded + 16 * v);
    else return value_vector<type>(head, k, c + 16 * v);
  };
  typename Cached<type>::Vector acc[N][V];
  if constexpr (kIsInt8<type>) {
    clear<N, V>(acc);
    const Word* codes = reinterpret_cast<const Word*>(scratch.codes) + query * (kBlock / 2);
    multiply<N, V>(acc, matrix, codes, kBlock / 2, begin, end);
  } else {
#pragma GCC unroll kUnroll
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
      for (int v = 0; v < V; ++v) {
        acc[n][v] = mul(load(states + n * shape.state + 16 + c + 16 * v), set1(factors[n]));
      }
    }
    multiply<N, V>(acc, matrix, scratch.scores + query * kBlock, kBlock, begin, end);
  }
#pragma GCC unroll kUnroll
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < V; ++v) {
      float* total = states + n * shape.state + 16 + c + 16 * v;
      if constexpr (kIsInt8<type>) {
        const f32x16 before = mul(load(total), set1(factors[n]));
        store(total, fma(cvt_f32(acc[n][v]), set1(scratch.weight_scale[query + n]), before));
      } else {
        store(total, acc[n][v]);
      }
    }
  }
}

template <KvType type, int N, bool IsCopied>
[[gnu::noinline]] void accumulate(const Shape& shape, const Scratch& scratch, const Head& head, int64_t query,
                                  Range places, const float* factors, float* states) {
  int64_t c = 0;
  for (; c + 16 * kTileVectors <= shape.padded; c += 16 * kTileVectors) {
    accumulate_part<type, N, kTileVectors, IsCopied>(shape, scratch, head, query, places, factors, c, states);
  }
  if constexpr (kTileVectors > 2) {
    if (c + 32 <= shape.padded) {
      accumulate_part<type, N, 2, IsCopied>(shape, scratch, head, query, places, factors, c, states);
      c += 32;
    }
  }
  if constexpr (kTileVectors > 1) {
    if (c < shape.padded) {
      accumulate_part<type, N, 1, IsCopied>(shape, scratch, head, query, places, factors, c, states);
    }
  }
}

// ---- queries together -------------------------------------------------------------------------------------------------

// Calls f.operator()<N>(n) for queries n … n + N - 1 until all are served.
template <class F>
PUNA_INLINE void for_tiles(int64_t count, F f) {
  int64_t n = 0;
  for (; n + kTileQueries <= count; n += kTileQueries) f.template operator()<kTileQueries>(n);
  switch (count - n) {
    case 3: f.template operator()<3>(n); break;
    case 2: f.template operator()<2>(n); break;
    case 1: f.template operator()<1>(n); break;
    default: break;
  }
}

// What all of N queries see, and what any of them sees; the latter without those that see nothing.
PUNA_INLINE Range common_of(const Range* seen, int n) {
  Range common = seen[0];
  for (int i = 1; i < n; ++i) common = intersect(common, seen[i]);
  return common;
}
PUNA_INLINE Range hull_of(const Range* seen, int n) {
  Range hull = {0, 0};
  for (int i = 0; i < n; ++i) {
    if (seen[i].is_empty()) continue;
    if (hull.is_empty()) hull = seen[i];
    if (seen[i].begin < hull.begin) hull.begin = seen[i].begin;
    if (seen[i].end > hull.end) hull.end = seen[i].end;
  }
  return hull;
}

// Float sums take exactly the places that a query sees, since what lies at others may not be finite: those that all see
// for all of them together, the others for each alone, before and after.
template <KvType type, int N, bool IsCopied>
void accumulate_seen(const Shape& shape, const Scratch& scratch, const Head& head, int64_t query, const Range* seen,
                     float* states) {
  const float* factors = scratch.factors + query;
  const Range common = common_of(seen, N), hull = hull_of(seen, N);
  if (hull.is_empty()) return;
  if (hull.begin == common.begin && hull.end == common.end) {
    accumulate<type, N, IsCopied>(shape, scratch, head, query, common, factors, states);
    return;
  }
  const auto alone = [&](int n, Range places, const float* factor) {
    accumulate<type, 1, IsCopied>(shape, scratch, head, query + n, places, factor, states + n * shape.state);
  };
  bool is_seen_by_all = true;
  for (int n = 0; n < N; ++n) is_seen_by_all &= !seen[n].is_empty();
  if (kIsInt8<type> && is_seen_by_all) {  // weights of places that are not seen are zero
    accumulate<type, N, IsCopied>(shape, scratch, head, query, hull, factors, states);
    return;
  }
  if (common.is_empty()) {
    for (int n = 0; n < N; ++n) {
      if (!seen[n].is_empty()) alone(n, seen[n], factors + n);
    }
    return;
  }
  const float ones[kTileQueries] = {1.0f, 1.0f, 1.0f, 1.0f};
  for (int n = 0; n < N; ++n) alone(n, {seen[n].begin, common.begin}, factors + n);
  accumulate<type, N, IsCopied>(shape, scratch, head, query, common, ones, states);
  for (int n = 0; n < N; ++n) {
    if (common.end < seen[n].end) alone(n, {common.end, seen[n].end}, ones);
  }
}

// Everything for the queries of one KV head, the first of which is number 0 in `scratch`. `seen`: the places that each
// of them sees, which may be none.
template <KvType type, bool IsCopied>
void attend(const Shape& shape, const Scratch& scratch, const Head& head, const Range* seen, int64_t count,
            float* states) {
  for_tiles(count, [&]<int N>(int64_t n) {
    const Range hull = hull_of(seen + n, N);
    if (!hull.is_empty()) score_groups<type, N, IsCopied>(shape, scratch, head, hull, n);
  });
  float* factors = scratch.factors;
  for (int64_t n = 0; n < count; ++n) {
    factors[n] = 0.0f;
    if (!seen[n].is_empty()) find_top(shape, scratch, n, seen[n], states + n * shape.state);
  }
  for (int64_t n = 0; n < count; n += 16) store(factors + n, exp(load(factors + n)));
  for (int64_t n = 0; n < count; ++n) {
    if (!seen[n].is_empty()) weigh<type>(scratch, n, factors[n], states + n * shape.state);
  }
  for_tiles(count, [&]<int N>(int64_t n) {
    accumulate_seen<type, N, IsCopied>(shape, scratch, head, n, seen + n, states + n * shape.state);
  });
}

}  // namespace
}  // namespace puna::PUNA_NS
