// Keys and values of one block of positions, as the products of attention take them: from where they are in the cache, or
// from a copy in scratch memory where many queries read them.
//
// A product is a sum over `depth` of one 32-bit number per query times one vector of sixteen 32-bit lanes:
//   scores   over the elements of a head; lanes are positions, so keys are transposed on the way
//   values   over positions; lanes are elements of a head
// An int8 cache has pairs of int16 in place of floats: two elements, or two positions, at each step of the depth.
#pragma once

#include "ops/kernels.h"

#include "simd/int16_pairs.h"
#include "simd/transpose.h"

namespace puna::PUNA_NS {
namespace {

constexpr int64_t kBlock = kAttentionBlock;
constexpr int kGroups = kBlock / 16;

// A half-open range of positions, or of places in a block.
struct Range {
  int64_t begin, end;
  bool is_empty() const { return begin >= end; }
};

PUNA_INLINE Range intersect(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// Positions of one block, the row of the cache where each is, and how many bytes after row 0 that begins. Places that
// are not there have the row of one that is.
struct Block {
  Range positions;
  int64_t rows[kBlock];
  int64_t offsets[kBlock];

  Range places() const {
    const int64_t begin = positions.begin / kBlock * kBlock;
    return {positions.begin - begin, positions.end - begin};
  }
};

// ---- types of cache ---------------------------------------------------------------------------------------------------

PUNA_INLINE f32x16 step(f32x16 acc, f32x16 matrix, const float* operand) { return fma(matrix, set1(*operand), acc); }
PUNA_INLINE i32x16 step(i32x16 acc, i32x16 matrix, const int32_t* operand) {
  int32_t pair;  // written as two int16
  memcpy(&pair, operand, sizeof pair);
  return dot2(acc, matrix, set1_i32(pair));
}
PUNA_INLINE f32x16 load_words(const float* p) { return load(p); }
PUNA_INLINE i32x16 load_words(const int32_t* p) { return load_i32(p); }
PUNA_INLINE void store_words(float* p, f32x16 a) { store(p, a); }
PUNA_INLINE void store_words(int32_t* p, i32x16 a) { store_i32(p, a); }

// Sixteen places of kTransposedBytes each, transposed.
union Columns {
  alignas(64) uint16_t words[8 * 16];
  uint32_t dwords[4 * 16];
  float floats[4 * 16];
  int32_t integers[4 * 16];
};

// How many times kTransposedBytes are transposed before they are multiplied: with AVX2's sixteen registers, shuffles and
// multiplications get into each other's way.
constexpr int kTransposed = kParts == 2 ? 8 : 1;

// With registers of 256 bits, compilers would keep columns in them, for which there are too few beside the sums, and float16
// takes twice as long to convert from one as from memory.
template <class T>
PUNA_INLINE void through_memory(T& columns) {
  if constexpr (kParts == 2) __asm__("" : "+m"(columns));
}

// Of each type: bytes of an element; steps of the depth of scores in kTransposedBytes, and `column`, one of them;
// positions in a step of the depth of values, and `value`, sixteen elements of those positions.
template <KvType type>
struct Cached {
  using Word = float;
  using Vector = f32x16;
  static constexpr int64_t kBytes = type == KvType::f32 ? 4 : 2, kSteps = kTransposedBytes / kBytes, kPositions = 1;
  PUNA_INLINE int64_t depth(int64_t head_dim) { return head_dim; }
  PUNA_INLINE void transpose(const uint8_t* const* rows, int64_t offset, Columns& columns) {
    if constexpr (type == KvType::f32) {
      transpose_dwords(rows, offset, columns.dwords);
    } else {
      transpose_words(rows, offset, columns.words);
    }
  }
  PUNA_INLINE f32x16 column(const Columns& columns, int64_t step) {
    if constexpr (type == KvType::f32) return load(columns.floats + 16 * step);
    else if constexpr (type == KvType::f16) return load_f16(columns.words + 16 * step);
    else return load_bf16(columns.words + 16 * step);
  }
  PUNA_INLINE f32x16 value(const uint8_t* position) {
    if constexpr (type == KvType::f32) return load(reinterpret_cast<const float*>(position));
    else if constexpr (type == KvType::f16) return load_f16(reinterpret_cast<const uint16_t*>(position));
    else return load_bf16(reinterpret_cast<const uint16_t*>(position));
  }
};

template <>
struct Cached<KvType::i8> {
  using Word = int32_t;
  using Vector = i32x16;
  static constexpr int64_t kBytes = 1, kSteps = kTransposedBytes / 2, kPositions = 2;
  // Bytes 0 and 2 of each four, then 1 and 3: see operand_place.
  PUNA_INLINE int64_t depth(int64_t head_dim) { return (head_dim + 3) / 4 * 2; }
  PUNA_INLINE void transpose(const uint8_t* const* rows, int64_t offset, Columns& columns) {
    transpose_dwords(rows, offset, columns.dwords);
  }
  PUNA_INLINE i32x16 column(const Columns& columns, int64_t step) {
    const i32x16 four = load_i32(columns.integers + 16 * (step / 2));
    return step % 2 == 0 ? bytes_low(four) : bytes_high(four);
  }
  PUNA_INLINE i32x16 value(const uint8_t* first, const uint8_t* second) {
    return pair_bytes(reinterpret_cast<const int8_t*>(first), reinterpret_cast<const int8_t*>(second));
  }
};

// Where the code of element c of a query is among the int16 that multiply the columns of an int8 cache.
PUNA_INLINE int64_t operand_place(int64_t c) { return c / 4 * 4 + c % 2 * 2 + c / 2 % 2; }

// ---- one KV head of a block -------------------------------------------------------------------------------------------

// The head in a block and in the block that is read after it. Whoever reads places asks for as many lines of the next
// block's: pages lie anywhere, which no prefetcher foresees. Evenly, a line every few steps, since a core waits for few
// lines at a time, and loads from the second level queue behind a burst of them. Into the second level, since rows that
// are a power of two apart would push each other out of the first.
struct Head {
  const uint8_t* keys;     // of row 0
  const uint8_t* values;
  int64_t head_bytes;
  int64_t head_dim;
  const int64_t* offsets;  // of places
  const int64_t* next;     // of places of the next block

  PUNA_INLINE void ask(const uint8_t* address) { __builtin_prefetch(address, 0, 2); }
};

// Bytes offset … offset + kTransposedBytes - 1 of the keys in sixteen rows, transposed; zeros past their end.
template <KvType type>
PUNA_INLINE void key_columns(const Head& head, const uint8_t* const* rows, int64_t offset, Columns& columns) {
  if (offset + kTransposedBytes <= head.head_bytes) {
    Cached<type>::transpose(rows, offset, columns);
    return;
  }
  uint8_t rest[16][kTransposedBytes] = {};
  const uint8_t* rests[16];
  for (int i = 0; i < 16; ++i) {
    memcpy(rest[i], rows[i] + offset, static_cast<size_t>(head.head_bytes - offset));
    rests[i] = rest[i];
  }
  Cached<type>::transpose(rests, 0, columns);
}

// Calls f(step, columns of G groups) for each step of the depth, ascending: keys of places 16·group … of one KV head.
template <KvType type, int G, class F>
PUNA_INLINE void for_key_columns(const Head& head, int group, F f) {
  using Vector = typename Cached<type>::Vector;
  constexpr int64_t kSteps = Cached<type>::kSteps;
  const uint8_t* rows[16 * G];
  for (int i = 0; i < 16 * G; ++i) rows[i] = head.keys + head.offsets[16 * group + i];
  const int64_t depth = Cached<type>::depth(head.head_dim);
  Columns columns[kTransposed][G];
  const auto call = [&](int64_t begin, int64_t i, const Columns* of_groups) __attribute__((always_inline)) {
    Vector vectors[G];
#pragma GCC unroll kUnroll
    for (int g = 0; g < G; ++g) vectors[g] = Cached<type>::column(of_groups[g], i);
    if (4 * i % kSteps == 0) {  // four of sixteen lines in each of the four times that a line is transposed
      const int64_t part = begin / kSteps, place = 4 * (part % 4) + 4 * i / kSteps;
#pragma GCC unroll kUnroll
      for (int g = 0; g < G; ++g) Head::ask(head.keys + head.next[16 * (group + g) + place] + part / 4 * 64);
    }
    f(begin + i, vectors);
  };
  for (int64_t begin = 0; begin < depth; begin += kTransposed * kSteps) {
    const int64_t rest = (depth - begin + kSteps - 1) / kSteps, count = rest < kTransposed ? rest : kTransposed;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t offset = (begin / kSteps + n) * kTransposedBytes;
#pragma GCC unroll kUnroll
      for (int g = 0; g < G; ++g) key_columns<type>(head, rows + 16 * g, offset, columns[n][g]);
    }
    through_memory(columns);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t first = begin + n * kSteps;
      if (first + kSteps <= depth) {
#pragma GCC unroll(kUnroll > 1 ? 16 : 1)
        for (int64_t i = 0; i < kSteps; ++i) call(first, i, columns[n]);
      } else {
        for (int64_t i = 0; first + i < depth; ++i) call(first, i, columns[n]);
      }
    }
  }
}

// keys[depth][64]: the columns of the groups that hold `places`.
template <KvType type>
void copy_keys(const Head& head, Range places, typename Cached<type>::Word* keys) {
  for (int group = static_cast<int>(places.begin / 16); 16 * group < places.end; ++group) {
    for_key_columns<type, 1>(head, group, [&](int64_t step, auto* columns) __attribute__((always_inline)) {
      store_words(keys + step * kBlock + 16 * group, columns[0]);
    });
  }
}

// Elements c … c + 15 of the values at step `step` of the depth; all sixteen are there.
template <KvType type>
PUNA_INLINE typename Cached<type>::Vector value_vector(const Head& head, int64_t step, int64_t c) {
  constexpr int64_t kBytes = Cached<type>::kBytes, kOfLine = 4 / kBytes;  // vectors in a line
  const uint8_t* base = head.values + c * kBytes;
  // AVX2 passes over the places once for each vector: passes over the same lines ask for them in turn.
  const bool asks = c / 16 % kOfLine == (kParts == 2 ? step % kOfLine : 0);
  if constexpr (Cached<type>::kPositions == 1) {
    if (asks) Head::ask(base + head.next[step]);
    return Cached<type>::value(base + head.offsets[step]);
  } else {
    if (asks) {
      Head::ask(base + head.next[2 * step]);
      Head::ask(base + head.next[2 * step + 1]);
    }
    return Cached<type>::value(base + head.offsets[2 * step], base + head.offsets[2 * step + 1]);
  }
}

// values[depth][padded]: all steps that hold one of `places`, zeros past the end of the head.
template <KvType type>
void copy_values(const Head& head, Range places, int64_t padded, typename Cached<type>::Word* values) {
  constexpr int64_t kPositions = Cached<type>::kPositions, kBytes = Cached<type>::kBytes;
  for (int64_t step = places.begin / kPositions; step * kPositions < places.end; ++step) {
    for_columns(head.head_dim, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      if (lanes == 16) {
        store_words(values + step * padded + c, value_vector<type>(head, step, c));
        return;
      }
      uint8_t rest[kPositions][16 * kBytes] = {};
      for (int64_t i = 0; i < kPositions; ++i) {
        memcpy(rest[i], head.values + head.offsets[kPositions * step + i] + c * kBytes,
               static_cast<size_t>(lanes * kBytes));
      }
      if constexpr (kPositions == 1) store_words(values + step * padded + c, Cached<type>::value(rest[0]));
      else store_words(values + step * padded + c, Cached<type>::value(rest[0], rest[1]));
    });
  }
}

}  // namespace
}  // namespace puna::PUNA_NS
