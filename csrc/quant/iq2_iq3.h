// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: codebook formats with signs, super-blocks of 256. No packed form.
//
// An index into a codebook (iq_grids.h) gives the magnitudes of eight (IQ2) or four (IQ3) elements. Signs are one bit
// per element, set = negative; where only seven bits are stored for eight elements, the eighth makes their number even.
// Stored:
//   IQ2_XXS  66 bytes: float16 d; per 32 elements four index bytes and a word of four 7-bit signs and a 4-bit scale s.
//            Value (d·(0.5+s)·0.25)·magnitude·sign.
//   IQ2_XS   74 bytes: float16 d; per 8 elements a word of a 9-bit index and 7 sign bits; a nibble s per 16 elements.
//            Scales as in IQ2_XXS.
//   IQ2_S    82 bytes: float16 d; per 8 elements an index byte, then per 8 elements a sign byte; two more index bits
//            per 8 elements; a nibble s per 16. Scales as in IQ2_XXS.
//   IQ3_XXS  98 bytes: float16 d; per 4 elements an index byte; per 32 elements a word of four 7-bit signs and a 4-bit
//            s. Value (d·(0.5+s)·0.5)·magnitude·sign.
//   IQ3_S    110 bytes: float16 d; per 4 elements an index byte; one more index bit per 4 elements; a sign byte per 8;
//            a nibble s per 32. Value (d·(1+2·s))·magnitude·sign.
#pragma once

#include "bits.h"
#include "iq_grids.h"

namespace puna::quant {

inline constexpr float kIq2Magnitudes[4] = {8, 25, 43, 0};
inline constexpr float kIq3XxsMagnitudes[8] = {4, 12, 20, 28, 36, 44, 52, 62};
inline constexpr float kIq3SMagnitudes[8] = {1, 3, 5, 7, 9, 11, 13, 15};

PUNA_INLINE uint32_t even_signs(uint32_t seven) {
  seven &= 127u;
  return seven | (static_cast<uint32_t>(__builtin_parity(seven)) << 7);
}
// Signs are random: a branch on them would be mispredicted at every second element.
inline constexpr float kSigns[2] = {1, -1};
PUNA_INLINE void put_signed(float scale, float magnitude, uint32_t negative, float* out) {
  *out = (scale * magnitude) * kSigns[negative];
}
PUNA_INLINE void put_iq2(uint16_t entry, uint32_t signs, float scale, float* out) {
  for (int i = 0; i < 8; ++i) {
    put_signed(scale, kIq2Magnitudes[(entry >> (2 * i)) & 3], (signs >> i) & 1u, out + i);
  }
}
PUNA_INLINE void put_iq3(uint16_t entry, const float* magnitudes, uint32_t signs, float scale, float* out) {
  for (int i = 0; i < 4; ++i) {
    put_signed(scale, magnitudes[(entry >> (4 * i)) & 7], (signs >> i) & 1u, out + i);
  }
}
PUNA_INLINE int nibble(const uint8_t* bytes, int i) { return (bytes[i / 2] >> (4 * (i % 2))) & 15; }

struct IQ2_XXS {
  static constexpr int kElements = 256, kBytes = 66;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int group = 0; group < 8; ++group) {
      const uint8_t* index = block + 2 + 8 * group;
      const uint32_t word = load_u32(index + 4);
      const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.25f;
      for (int i = 0; i < 4; ++i) {
        put_iq2(kIq2XxsGrid[index[i]], even_signs(word >> (7 * i)), scale, out + 32 * group + 8 * i);
      }
    }
  }
};

struct IQ2_XS {
  static constexpr int kElements = 256, kBytes = 74;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 32; ++i) {
      const uint32_t word = load_u16(block + 2 + 2 * i);
      const float scale = d * (0.5f + static_cast<float>(nibble(block + 66, i / 2))) * 0.25f;
      put_iq2(kIq2XsGrid[word & 511u], even_signs(word >> 9), scale, out + 8 * i);
    }
  }
};

struct IQ2_S {
  static constexpr int kElements = 256, kBytes = 82;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 32; ++i) {
      const int upper = (block[66 + i / 4] >> (2 * (i % 4))) & 3;
      const float scale = d * (0.5f + static_cast<float>(nibble(block + 74, i / 2))) * 0.25f;
      put_iq2(kIq2SGrid[block[2 + i] | (upper << 8)], block[34 + i], scale, out + 8 * i);
    }
  }
};

struct IQ3_XXS {
  static constexpr int kElements = 256, kBytes = 98;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int group = 0; group < 8; ++group) {
      const uint8_t* index = block + 2 + 8 * group;
      const uint32_t word = load_u32(block + 66 + 4 * group);
      const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.5f;
      for (int i = 0; i < 8; ++i) {
        const uint32_t signs = even_signs(word >> (7 * (i / 2))) >> (4 * (i % 2));
        put_iq3(kIq3XxsGrid[index[i]], kIq3XxsMagnitudes, signs, scale, out + 32 * group + 4 * i);
      }
    }
  }
};

struct IQ3_S {
  static constexpr int kElements = 256, kBytes = 110;
  static void dequantize(const uint8_t* block, float* out) {
    const float d = load_half(block);
    for (int i = 0; i < 64; ++i) {
      const int upper = (block[66 + i / 8] >> (i % 8)) & 1;
      const uint32_t signs = static_cast<uint32_t>(block[74 + i / 2]) >> (4 * (i % 2));
      const float scale = d * static_cast<float>(1 + 2 * nibble(block + 106, i / 8));
      put_iq3(kIq3SGrid[block[2 + i] | (upper << 8)], kIq3SMagnitudes, signs, scale, out + 4 * i);
    }
  }
};

}  // namespace puna::quant
