// AMX: eight tiles of 16 rows of 64 bytes, and products of tiles.
//
//   configure(shapes)     rows and bytes of each tile, for this thread, until release()
//   zero<N>()             load<N>(p, stride)    store<N>(p, stride): a row every `stride` bytes
//   dot_i8<C, A, B>()     C[m][n] += sum over k and j of A[m][4k+j] · B[k][4n+j], int8 times int8 in int32
//   dot_bf16<C, A, B>()   C[m][n] += even + odd; even = fma(A[m][2k], B[k][2n], even) from 0, k ascending, and odd likewise
//                         of A[m][2k+1] and B[k][2n+1]; bfloat16 in float32, subnormals as zeros, one rounding each
//
// HardwareTiles are the instructions. They are written in assembly of our own: gcc 12 declares eight bytes of the
// configuration as read and no memory at all as read by a load, and so may leave out what fills it. EmulatedTiles are
// their meaning in the vector vocabulary, bit for bit in threads that flush subnormals: what machines without AMX test,
// and what the instructions are compared with before they are trusted (ops/tiles_check.cpp).
#pragma once

namespace puna::PUNA_NS {

inline constexpr int kTiles = 8, kTileRows = 16, kTileRowBytes = 64;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  void set(int tile, int row_count, int row_bytes) {
    rows[tile] = static_cast<uint8_t>(row_count);
    bytes[tile] = static_cast<uint16_t>(row_bytes);
  }
};
static_assert(sizeof(TileShapes) == 64);

struct HardwareTiles {
  PUNA_INLINE void configure(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory"); }
  PUNA_INLINE void release() { __asm__ volatile("tilerelease" : : : "memory"); }
  template <int N>
  PUNA_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(N) : "memory");
  }
  template <int N>
  PUNA_INLINE void load(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(N) : "memory");
  }
  template <int N>
  PUNA_INLINE void store(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(N) : "memory");
  }
  template <int C, int A, int B>
  PUNA_INLINE void dot_i8() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B) : "memory");
  }
  template <int C, int A, int B>
  PUNA_INLINE void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B) : "memory");
  }
};

struct TileState {
  TileShapes shapes;
  alignas(64) uint8_t tile[kTiles][kTileRows][kTileRowBytes];
};
inline thread_local TileState tile_state;

class EmulatedTiles {
 public:
  static void configure(const TileShapes& shapes) {
    for (int n = 0; n < kTiles; ++n) require(shapes.rows[n] <= kTileRows && shapes.bytes[n] <= kTileRowBytes);
    tile_state.shapes = shapes;
    memset(tile_state.tile, 0, sizeof tile_state.tile);
  }
  static void release() { tile_state.shapes = TileShapes(); }
  template <int N>
  static void zero() {
    require(rows(N) > 0);
    memset(tile_state.tile[N], 0, sizeof tile_state.tile[N]);
  }
  template <int N>
  static void load(const void* p, int64_t stride) {
    zero<N>();
    for (int m = 0; m < rows(N); ++m) {
      memcpy(tile_state.tile[N][m], static_cast<const uint8_t*>(p) + m * stride, static_cast<size_t>(bytes(N)));
    }
  }
  template <int N>
  static void store(void* p, int64_t stride) {
    require(rows(N) > 0);
    for (int m = 0; m < rows(N); ++m) {
      memcpy(static_cast<uint8_t*>(p) + m * stride, tile_state.tile[N][m], static_cast<size_t>(bytes(N)));
    }
  }
  template <int C, int A, int B>
  static void dot_i8() {
    check_product(C, A, B);
    for (int m = 0; m < rows(C); ++m) {
      uint32_t sums[kTileRowBytes / 4];
      memcpy(sums, tile_state.tile[C][m], sizeof sums);
      for (int k = 0; k < rows(B); ++k) {
        const uint8_t *a = tile_state.tile[A][m] + 4 * k, *b = tile_state.tile[B][k];
        for (int n = 0; n < bytes(C) / 4; ++n) {
          for (int j = 0; j < 4; ++j) {
            sums[n] += static_cast<uint32_t>(static_cast<int8_t>(a[j]) * static_cast<int8_t>(b[4 * n + j]));
          }
        }
      }
      memcpy(tile_state.tile[C][m], sums, static_cast<size_t>(bytes(C)));
    }
  }
  template <int C, int A, int B>
  static void dot_bf16() {
    check_product(C, A, B);
    for (int m = 0; m < rows(C); ++m) {
      f32x16 even = puna::PUNA_NS::zero(), odd = even;
      for (int k = 0; k < rows(B); ++k) {
        uint32_t a;
        memcpy(&a, tile_state.tile[A][m] + 4 * k, sizeof a);
        const bvec b = bload(tile_state.tile[B][k]);
        even = fma(set1(__builtin_bit_cast(float, a << 16)), even_bf16(b), even);
        odd = fma(set1(__builtin_bit_cast(float, a & 0xffff0000u)), odd_bf16(b), odd);
      }
      float sums[kTileRowBytes / 4];
      memcpy(sums, tile_state.tile[C][m], sizeof sums);
      puna::PUNA_NS::store(sums, add(puna::PUNA_NS::load(sums), add(even, odd)));
      memcpy(tile_state.tile[C][m], sums, static_cast<size_t>(bytes(C)));
    }
  }

 private:
  static int rows(int n) { return tile_state.shapes.rows[n]; }
  static int bytes(int n) { return tile_state.shapes.bytes[n]; }
  // What the processor refuses with an exception.
  static void require(bool is_right) {
    if (!is_right) __builtin_trap();
  }
  static void check_product(int c, int a, int b) {
    require(rows(c) > 0 && rows(c) == rows(a) && bytes(c) == bytes(b) && bytes(a) == 4 * rows(b));
    require(c != a && c != b && a != b);
  }
};

#ifdef PUNA_EMULATED_TILES
using Tiles = EmulatedTiles;
#else
using Tiles = HardwareTiles;
#endif

}  // namespace puna::PUNA_NS
