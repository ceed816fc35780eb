// What the engine knows about a storage format of weights: the one table behind readers, packing and kernels.
#pragma once

#include <stdint.h>

#include "block_parts.h"

namespace puna {

// Which matrix kernel multiplies by a packed format. `stored` has no packed form: its blocks are kept as they are and
// multiplied through float32 panels. `bf16_exact` is bf16 with activations that are not rounded.
enum class Kernel : uint8_t {
  stored,
  f32,
  f16,
  bf16,
  bf16_exact,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  iq4_nl,
  q4_k,
  q5_k,
  q6_k,
  iq4_xs,
  q2_k,
  q3_k,
  mxfp4,
};

// What a matrix product takes its other operand as: float32, or int8 with a scale per 32 values (a8.h).
enum class Partner : uint8_t { f32, a8 };

// Rows of a panel: the unit in which packed weights are stored, multiplied and divided among threads.
inline constexpr int kPanelRows = 16;

struct Format {
  const char* name;         // ggml's name of the type
  int32_t ggml_type;        // its number in GGUF files
  int32_t block_elements;   // consecutive values of a row that form a block
  int32_t block_bytes;
  // `elements` values (a multiple of block_elements) from whole blocks, bit-equal to the gguf package.
  void (*dequantize)(const uint8_t* blocks, int64_t elements, float* out);
  // One block of what a quantizer chose; null where weights cannot be quantized to the format, or need no choice (F16).
  void (*encode)(const BlockParts& parts, uint8_t* block);

  // The packed form: 16 rows of `unit_elements` values are one unit of `unit_bytes` (0: no packed form).
  Kernel kernel;
  int32_t unit_elements;
  int32_t unit_bytes;
  // Writes row `row` (0..15) of a panel, which must be zero before; and gives its blocks back, every byte of them.
  void (*pack_row)(const uint8_t* blocks, int64_t elements, uint8_t* panel, int row);
  void (*unpack_row)(const uint8_t* panel, int64_t elements, int row, uint8_t* blocks);
};

// The format called `name` ("Q4_K"), or nullptr.
const Format* find_format(const char* name);

// Every format, in the order of the ggml type numbers.
struct FormatList {
  const Format* begin_;
  const Format* end_;
  const Format* begin() const { return begin_; }
  const Format* end() const { return end_; }
};
FormatList formats();

// What the format's packed form is multiplied with.
Partner partner_of(Kernel kernel);

// The kernel for matrices of a format. With `full_precision`, one that takes activations as they are.
Kernel kernel_for(const Format& format, bool full_precision);

}  // namespace puna
