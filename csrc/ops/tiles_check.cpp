// Whether this machine's tiles do what the kernels need: the instructions against their emulation, on operands that bring
// out every rounding, extreme bytes, subnormals and tiles that are not full.
#include "../core/kernel_table.h"
#include "../simd/simd.h"

#if defined(PUNA_HAS_TILES) && !defined(PUNA_EMULATED_TILES)

namespace puna::PUNA_NS {
namespace {

constexpr int kSumBytes = kTileRows * kTileRowBytes;

struct Operands {
  alignas(64) uint8_t a[kTileRows][kTileRowBytes], b[kTileRows][kTileRowBytes], c[kTileRows][kTileRowBytes];
};

struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 32);
  }
};

TileShapes shapes_of(int rows, int row_bytes) {
  TileShapes shapes;
  shapes.set(0, rows, kTileRowBytes);
  shapes.set(4, rows, row_bytes);
  shapes.set(6, row_bytes / 4, kTileRowBytes);
  return shapes;
}

template <class T, bool IsFloat>
[[gnu::noinline]] void run(const Operands& operands, int rows, int row_bytes, uint8_t* out) {
  memset(out, 0, kSumBytes);
  T::configure(shapes_of(rows, row_bytes));
  T::template load<0>(operands.c, kTileRowBytes);
  T::template load<4>(operands.a, kTileRowBytes);
  T::template load<6>(operands.b, kTileRowBytes);
  if constexpr (IsFloat) T::template dot_bf16<0, 4, 6>();
  else T::template dot_i8<0, 4, 6>();
  T::template store<0>(out, kTileRowBytes);
  T::release();
}

template <bool IsFloat>
bool is_equal(const Operands& operands, int rows, int row_bytes) {
  alignas(64) uint8_t got[kSumBytes], wanted[kSumBytes];
  run<HardwareTiles, IsFloat>(operands, rows, row_bytes, got);
  run<EmulatedTiles, IsFloat>(operands, rows, row_bytes, wanted);
  return memcmp(got, wanted, kSumBytes) == 0;
}

void fill_bytes(Random& random, Operands& operands, bool is_extreme) {
  auto* bytes = reinterpret_cast<uint8_t*>(&operands);
  for (size_t i = 0; i < sizeof operands; ++i) {
    const uint32_t drawn = random.next();
    bytes[i] = static_cast<uint8_t>(is_extreme ? (drawn & 1u ? 0x80 : 0x7f) : drawn >> 8);
  }
}

// Exponents lowest … lowest + range - 1 for the factors; sums of the size of their products.
void fill_floats(Random& random, Operands& operands, uint32_t lowest, uint32_t range) {
  const auto draw = [&](uint32_t exponent) { return (random.next() & 0x807fffffu) | exponent << 23; };
  for (int m = 0; m < kTileRows; ++m) {
    for (int i = 0; i < kTileRowBytes; i += 2) {
      const uint32_t a = draw(lowest + random.next() % range) >> 16, b = draw(lowest + random.next() % range) >> 16;
      memcpy(operands.a[m] + i, &a, 2);
      memcpy(operands.b[m] + i, &b, 2);
    }
    for (int i = 0; i < kTileRowBytes; i += 4) {
      const uint32_t middle = 2 * lowest + range, exponent = middle > 127 ? middle - 127 : 0;
      const uint32_t c = draw(exponent > 254 ? 254 : exponent);
      memcpy(operands.c[m] + i, &c, 4);
    }
  }
}

}  // namespace

bool tiles_work() {
  struct Exponents {
    uint32_t lowest, range;
  };
  constexpr Exponents kExponents[] = {{127, 1}, {120, 16}, {0, 3}, {55, 12}, {1, 150}, {100, 80}};
  constexpr int kRows[] = {16, 1, 7}, kRowBytes[] = {64, 32, 4};
  Random random{1};
  Operands operands;
  for (int round = 0; round < 8; ++round) {
    for (const int rows : kRows) {
      for (const int row_bytes : kRowBytes) {
        fill_bytes(random, operands, round == 0);
        if (!is_equal<false>(operands, rows, row_bytes)) return false;
      }
      for (const Exponents& exponents : kExponents) {
        fill_floats(random, operands, exponents.lowest, exponents.range);
        if (!is_equal<true>(operands, rows, kTileRowBytes)) return false;
      }
    }
  }
  return true;
}

}  // namespace puna::PUNA_NS

#endif
