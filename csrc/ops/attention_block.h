// One block of attention: scores, weights and sums of some queries over up to 32 positions.
//
// Keys and values come from where they are, or from a copy as float32 in scratch memory where many queries read them.
#pragma once

#include "ops/kernels.h"

#include "simd/reduce16.h"

namespace puna::PUNA_NS {
namespace {

constexpr int64_t kBlock = kAttentionBlock;
// Queries that go through each stage together, so that none waits for the other's chain of operations; and whether they
// share what is loaded: with four positions, or four vectors of a value, their sums fill 32 registers.
constexpr int kQueries = 4;
constexpr bool kShareLoads = kParts == 1 && kUnroll > 1;

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

// A half-open range of positions, or of places in a block.
struct Range {
  int64_t begin, end;
};

PUNA_INLINE Range intersect(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// Where the keys (or the values) of the places of a block are.
struct ScratchRows {
  const float* base;
  int64_t stride;
  [[gnu::always_inline]] f32x16 at(int64_t place, int64_t c) const { return load(base + place * stride + c); }
};
template <KvType type>
struct CacheRows {
  const uint8_t* base;
  const int64_t* elements;  // of each place, also of those that are not there: then any that is
  [[gnu::always_inline]] f32x16 at(int64_t place, int64_t c) const {
    const int64_t element = elements[place] + c;
    if constexpr (type == KvType::f32) {
      return load(reinterpret_cast<const float*>(base) + element);
    } else if constexpr (type == KvType::f16) {
      return load_f16(reinterpret_cast<const uint16_t*>(base) + element);
    } else {
      return load_bf16(reinterpret_cast<const uint16_t*>(base) + element);
    }
  }
};

PUNA_INLINE float exp1(float x) {
  float lanes[16];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

// Scores of N queries over the places `seen` of a block, -infinity at the others. `ask` is called eight times on the way.
template <int N, class Rows, class Ask>
void score(const Shape& shape, const Scratch& scratch, const Rows& keys, float scale, int64_t query, Range seen,
           Ask& ask) {
  const float* q = scratch.queries + query * shape.padded;
  float* scores = scratch.weights + query * kBlock;
  const f32x16 factor = set1(scale), nothing = set1(-__builtin_inff());
  for (int half = 0; half < kBlock; half += 16) {
    if (seen.begin >= half + 16 || seen.end <= half) {
      for (int n = 0; n < N; ++n) store(scores + n * kBlock + half, nothing);
      continue;
    }
    folded parts[N][4];
#pragma GCC unroll kUnroll
    for (int group = 0; group < 4; ++group) {
      ask();
      f32x16 acc[N][4];
#pragma GCC unroll kUnroll
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
        for (int i = 0; i < 4; ++i) acc[n][i] = zero();
      }
      for (int64_t c = 0; c < shape.padded; c += 16) {
        f32x16 part_of_q[N];
#pragma GCC unroll kUnroll
        for (int n = 0; n < N; ++n) part_of_q[n] = load(q + n * shape.padded + c);
#pragma GCC unroll kUnroll
        for (int i = 0; i < 4; ++i) {
          const f32x16 k = keys.at(half + fold_member(group, i), c);
#pragma GCC unroll kUnroll
          for (int n = 0; n < N; ++n) acc[n][i] = fma(part_of_q[n], k, acc[n][i]);
        }
      }
#pragma GCC unroll kUnroll
      for (int n = 0; n < N; ++n) parts[n][group] = fold4(acc[n][0], acc[n][1], acc[n][2], acc[n][3]);
    }
#pragma GCC unroll kUnroll
    for (int n = 0; n < N; ++n) {
      const f32x16 sums = fold_end(parts[n][0], parts[n][1], parts[n][2], parts[n][3]);
      store(scores + n * kBlock + half, mul(sums, factor));
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int64_t j = 0; j < seen.begin; ++j) scores[n * kBlock + j] = -__builtin_inff();
    for (int64_t j = seen.end; j < kBlock; ++j) scores[n * kBlock + j] = -__builtin_inff();
  }
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
template <int N, int V, class Rows>
PUNA_INLINE void accumulate_part(const Shape& shape, const Scratch& scratch, const Rows& values, int64_t query,
                                 int64_t c, Range seen, float* states) {
  f32x16 acc[N][V];
#pragma GCC unroll kUnroll
  for (int n = 0; n < N; ++n) {
    const f32x16 factor = set1(scratch.factors[query + n]);
#pragma GCC unroll kUnroll
    for (int v = 0; v < V; ++v) acc[n][v] = mul(load(states + n * shape.state + 16 + c + 16 * v), factor);
  }
  const float* weights = scratch.weights + query * kBlock;
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    f32x16 value[V];
#pragma GCC unroll kUnroll
    for (int v = 0; v < V; ++v) value[v] = values.at(j, c + 16 * v);
#pragma GCC unroll kUnroll
    for (int n = 0; n < N; ++n) {
      const f32x16 p = set1(weights[n * kBlock + j]);
#pragma GCC unroll kUnroll
      for (int v = 0; v < V; ++v) acc[n][v] = fma(p, value[v], acc[n][v]);
    }
  }
#pragma GCC unroll kUnroll
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < V; ++v) store(states + n * shape.state + 16 + c + 16 * v, acc[n][v]);
  }
}

template <int N, class Rows>
void accumulate(const Shape& shape, const Scratch& scratch, const Rows& values, int64_t query, Range seen,
                float* states) {
  int64_t c = 0;
  for (; c + 64 <= shape.padded; c += 64) {
    accumulate_part<N, 4>(shape, scratch, values, query, c, seen, states);
  }
  if (c + 32 <= shape.padded) {
    accumulate_part<N, 2>(shape, scratch, values, query, c, seen, states);
    c += 32;
  }
  if (c < shape.padded) accumulate_part<N, 1>(shape, scratch, values, query, c, seen, states);
}

// Everything for N queries that see the same places.
template <int N, class Rows, class Ask>
void attend(const Shape& shape, const Scratch& scratch, const Rows& keys, const Rows& values, float scale,
            int64_t query, Range seen, float* states, Ask& ask) {
  constexpr int kTogether = kShareLoads ? N : 1;
  for (int n = 0; n < N; n += kTogether) score<kTogether>(shape, scratch, keys, scale, query + n, seen, ask);
  for (int n = 0; n < N; ++n) weigh(scratch, query + n, states + n * shape.state);
  for (int n = 0; n < N; n += kTogether) {
    accumulate<kTogether>(shape, scratch, values, query + n, seen, states + n * shape.state);
  }
}

}  // namespace
}  // namespace puna::PUNA_NS
