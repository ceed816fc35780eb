#include "blake2.h"

#include <algorithm>
#include <cstring>

#include "cpu_features.h"

namespace puna {
namespace {

constexpr int kBlock = 128, kLanes = 4, kStripe = kBlock * kLanes;

constexpr uint64_t kInitial[8] = {0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
                                  0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u};

constexpr uint8_t kOrder[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
};

// Word: uint64_t for one hash, Lanes for four side by side. The compiler lowers Lanes to what the target has.
using Lanes = uint64_t __attribute__((vector_size(32)));

#define PUNA_ALWAYS_INLINE inline __attribute__((always_inline))

template <class Word>
PUNA_ALWAYS_INLINE void turn(Word& x, int bits) {
  x = (x >> bits) | (x << (64 - bits));
}

template <class Word>
PUNA_ALWAYS_INLINE void mix(Word& a, Word& b, Word& c, Word& d, const Word& x, const Word& y) {
  a = a + b + x;
  d ^= a;
  turn(d, 32);
  c = c + d;
  b ^= c;
  turn(b, 24);
  a = a + b + y;
  d ^= a;
  turn(d, 16);
  c = c + d;
  b ^= c;
  turn(b, 63);
}

// One block into the state; `end` is all ones for the last block of a hash, `last` for that of the last of its level.
template <class Word>
PUNA_ALWAYS_INLINE void compress(Word (&state)[8], const Word (&message)[16], uint64_t count, uint64_t end,
                                 uint64_t last) {
  Word v[16];
  for (int i = 0; i < 8; ++i) v[i] = state[i];
  for (int i = 0; i < 8; ++i) v[8 + i] = Word{} + kInitial[i];
  v[12] ^= Word{} + count;
  v[14] ^= Word{} + end;
  v[15] ^= Word{} + last;
#pragma GCC unroll 12
  for (int round = 0; round < 12; ++round) {
    const uint8_t(&m)[16] = kOrder[round];
    mix(v[0], v[4], v[8], v[12], message[m[0]], message[m[1]]);
    mix(v[1], v[5], v[9], v[13], message[m[2]], message[m[3]]);
    mix(v[2], v[6], v[10], v[14], message[m[4]], message[m[5]]);
    mix(v[3], v[7], v[11], v[15], message[m[6]], message[m[7]]);
    mix(v[0], v[5], v[10], v[15], message[m[8]], message[m[9]]);
    mix(v[1], v[6], v[11], v[12], message[m[10]], message[m[11]]);
    mix(v[2], v[7], v[8], v[13], message[m[12]], message[m[13]]);
    mix(v[3], v[4], v[9], v[14], message[m[14]], message[m[15]]);
  }
  for (int i = 0; i < 8; ++i) state[i] ^= v[i] ^ v[8 + i];
}

PUNA_ALWAYS_INLINE uint64_t load(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// `stripes` full stripes, none of them the last.
PUNA_ALWAYS_INLINE void absorb(Lanes (&state)[8], const uint8_t* data, int64_t stripes) {
  for (int64_t stripe = 0; stripe < stripes; ++stripe, data += kStripe) {
    Lanes message[16];
    for (int w = 0; w < 16; ++w) {
      const uint8_t* word = data + 8 * w;
      message[w] = Lanes{load(word), load(word + kBlock), load(word + 2 * kBlock), load(word + 3 * kBlock)};
    }
    compress(state, message, static_cast<uint64_t>(stripe + 1) * kBlock, 0, 0);
  }
}

using Absorb = void (*)(Lanes (&state)[8], const uint8_t* data, int64_t stripes);

void absorb_plain(Lanes (&state)[8], const uint8_t* data, int64_t stripes) { absorb(state, data, stripes); }
#if defined(__x86_64__)
__attribute__((target("avx2"))) void absorb_avx2(Lanes (&state)[8], const uint8_t* data, int64_t stripes) {
  absorb(state, data, stripes);
}
__attribute__((target("avx2,avx512f,avx512vl"))) void absorb_avx512(Lanes (&state)[8], const uint8_t* data,
                                                                    int64_t stripes) {
  absorb(state, data, stripes);
}
#endif

Absorb best_absorb() {
#if defined(__x86_64__)
  if (cpu_features().avx512) return absorb_avx512;
  if (cpu_features().avx2) return absorb_avx2;
#endif
  return absorb_plain;
}

// Digests of 64 bytes, four leaves, two levels; `depth` 0: leaf number `offset`, 1: the root.
void begin(uint64_t (&state)[8], uint64_t offset, uint64_t depth) {
  std::copy(kInitial, kInitial + 8, state);
  state[0] ^= 64u | (uint64_t{kLanes} << 16) | (uint64_t{2} << 24);
  state[1] ^= offset;
  state[2] ^= depth | (uint64_t{64} << 8);
}

void compress_bytes(uint64_t (&state)[8], const uint8_t* data, int64_t bytes, uint64_t count, bool is_end,
                    bool is_last) {
  uint8_t block[kBlock] = {};
  if (bytes > 0) std::memcpy(block, data, static_cast<size_t>(bytes));
  uint64_t message[16];
  for (int w = 0; w < 16; ++w) message[w] = load(block + 8 * w);
  compress(state, message, count, is_end ? ~uint64_t{0} : 0, is_end && is_last ? ~uint64_t{0} : 0);
}

}  // namespace

Digest blake2bp(const uint8_t* data, int64_t bytes) {
  static const Absorb absorb_stripes = best_absorb();
  uint64_t leaves[kLanes][8];
  for (uint64_t lane = 0; lane < kLanes; ++lane) begin(leaves[lane], lane, 0);
  // The last block of each leaf is marked, so what is left after whole stripes is at least one block for each.
  const int64_t stripes = bytes >= 2 * kStripe ? bytes / kStripe - 1 : 0;
  if (stripes > 0) {
    Lanes state[8];
    for (int i = 0; i < 8; ++i) state[i] = Lanes{leaves[0][i], leaves[1][i], leaves[2][i], leaves[3][i]};
    absorb_stripes(state, data, stripes);
    for (int i = 0; i < 8; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) leaves[lane][i] = state[i][lane];
    }
  }
  uint8_t inner[kLanes * 64];
  for (int lane = 0; lane < kLanes; ++lane) {
    int64_t begin = stripes * kStripe + lane * kBlock;
    uint64_t count = static_cast<uint64_t>(stripes) * kBlock;
    bool is_end = false;
    while (!is_end) {
      is_end = begin + kStripe >= bytes;  // the leaf's next block would begin behind the data
      const int64_t part = std::clamp(bytes - begin, int64_t{0}, int64_t{kBlock});
      count += static_cast<uint64_t>(part);
      compress_bytes(leaves[lane], part > 0 ? data + begin : nullptr, part, count, is_end, lane == kLanes - 1);
      begin += kStripe;
    }
    std::memcpy(inner + 64 * lane, leaves[lane], 64);
  }
  uint64_t root[8];
  begin(root, 0, 1);
  compress_bytes(root, inner, kBlock, kBlock, false, true);
  compress_bytes(root, inner + kBlock, kBlock, 2 * kBlock, true, true);
  Digest digest;
  std::memcpy(digest.data(), root, digest.size());
  return digest;
}

}  // namespace puna
