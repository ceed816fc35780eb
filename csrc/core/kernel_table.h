// The seam between the program and the kernels: what each variant exports.
//
// A variant is the kernels compiled for one instruction set, in a namespace of its own (PUNA_NS, see simd/simd.h). The
// files in csrc/ops are compiled once per variant; they see plain structures and pointers only, no C++ library headers
// (an inline function of std:: compiled for AVX-512 could be the copy that the linker keeps for everybody).
//
// Rows of float32 operands are `ld` floats apart. A kernel is called with a range of rows (or panels) and touches
// nothing of the others' output, so that threads divide a range as they like; the division never changes a bit.
#pragma once

#include <stdint.h>

#include "../quant/format.h"

namespace puna {

// One matrix product: out[r, o] for rows r < m and the rows o of one packed matrix.
//
//   y = sum over k of weight[o, k] * x[r, k], in the order that the format's header in csrc/quant documents
//   y = y + bias[o]              where there is a bias
//   y = min(clip, max(-clip, y)) where clip > 0; NaN stays NaN
//   out = fma(multiplier, y, residual[r, o]) with a residual (which may be `out` itself), else multiplier * y
struct MatmulArgs {
  const Format* format;
  const uint8_t* packed;     // panels of kPanelRows output rows; the stored blocks where kernel is Kernel::stored
  Kernel kernel;             // Kernel::stored: through float32 panels
  int64_t rows, cols;        // of the matrix: outputs, inputs
  const float* x;            // float32 operand, or null
  int64_t ldx;
  const uint8_t* a8;         // operand in the layout of quant/a8.h, or null; rows padded to 16
  bool two_terms;            // two rows of a8 for each row of the product, which is the sum of both
  bool has_bf16_dot;         // this machine multiplies pairs of bfloat16 fast: CpuFeatures::bf16_dot
  int64_t m;
  float* out;
  int64_t ldo;
  const float* bias;         // [rows] or null
  const float* residual;     // or null
  int64_t ldr;
  float clip;
  float multiplier;
};

enum class NormKind : uint8_t { rms, layer };

struct NormArgs {
  NormKind kind;
  const float* x;
  int64_t ldx;
  float* out;                // or null
  int64_t ldo;
  uint8_t* a8;               // or null
  const float* weight;       // [width] or null
  const float* bias;         // [width] or null
  int64_t width;
  float eps;
};

enum class Activation : uint8_t { silu, gelu_tanh };

// out = activation(gate) * up.
struct GluArgs {
  Activation activation;
  const float* x;            // gate in columns 0 … width-1, up in the next `width`
  int64_t ldx;
  float* out;                // or null
  int64_t ldo;
  uint8_t* a8;               // or null
  int64_t width;
};

// out = a + multiplier * b, in one rounding.
struct AddArgs {
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb;
  float* out;
  int64_t ldo;
  int64_t width;
  float multiplier;
};

struct ScaleArgs {
  const float* x;
  int64_t ldx;
  float* out;
  int64_t ldo;
  int64_t width;
  float factor;
  bool divide;
};

// x = min(limit, max(-limit, x)); NaN stays NaN.
struct ClampArgs {
  float* x;
  int64_t ldx;
  int64_t width;
  float limit;
};

// x = cap * tanh(x / cap).
struct SoftcapArgs {
  float* x;
  int64_t ldx;
  int64_t width;
  float cap;
};

// The most elements of a head, and so the most that are rotated; more would overflow sums of int8 attention.
inline constexpr int64_t kMaxHeadDim = 1024;

enum class KvType : uint8_t { f32, f16, bf16, i8 };

constexpr int64_t kv_element_bytes(KvType type) { return type == KvType::f32 ? 4 : type == KvType::i8 ? 1 : 2; }

// The keys and values of one layer, in rows of one position with all its KV heads, `num_kv_heads * head_dim` elements.
// Position p of request b is row page * page_rows + p % page_size, page = table[b * table_stride + p / page_size].
struct KvView {
  uint8_t* keys;             // of row 0
  uint8_t* values;
  float* key_scales;         // [rows, num_kv_heads] of an int8 cache: element = code * scale
  float* value_scales;
  KvType type;
  int64_t page_rows;         // rows from one page to the next
  int64_t page_size;
  const uint32_t* table;
  int64_t table_stride;
};

struct RopeKvArgs {
  float* x;
  int64_t ldx;
  int64_t q_col, k_col, v_col;
  int64_t num_heads, num_kv_heads, head_dim, rot_dim;
  bool interleaved;
  const float* angles;       // cosines, then sines: rot_dim / 2 each
  int64_t ld_angles;
  const uint32_t* request_of;  // [rows]
  const uint32_t* position_of; // [rows]
  KvView kv;
};

// Attention of the queries q over the cache: softmax(q·k * scale) · v, causal, each query head with the keys and values
// of its group's KV head.
struct AttentionArgs {
  const float* q;            // first query column of row 0 of the step
  int64_t ldq;
  float* out;
  int64_t ldo;
  int64_t num_heads, num_kv_heads, head_dim;
  float scale;
  float softcap;             // scores s become softcap * tanh(s / softcap); 0: they stay
  int64_t window;            // a query sees itself and window - 1 positions before it; 0: everything before it
  KvView kv;
};

// One piece of it: consecutive rows of one request, with the query heads of some KV heads.
struct AttentionTile {
  int64_t first_row;         // of x
  int64_t rows;
  int64_t position;          // absolute, of the first row
  int64_t request;
  int64_t kv_head_begin, kv_head_end;
  // Splits of kAttentionSplit absolute positions: those that the rows see, or one of them.
  int64_t split_begin, split_end;
};

// Softmax runs over blocks of 64 absolute positions, ascending, within splits of 512; the states of the splits are
// combined in ascending order. None of this depends on who computes what.
inline constexpr int64_t kAttentionBlock = 64;
inline constexpr int64_t kAttentionSplit = 512;

// Queries (a row and a head) of a tile, at most: several rows of one KV head, or one row of several.
inline constexpr int64_t kAttentionQueries = 64;
constexpr int64_t attention_tile_queries(int64_t num_heads) {
  return num_heads > kAttentionQueries ? num_heads : kAttentionQueries;
}
// Floats of the state of one query over one split: maximum and sum (in a line of their own), then the weighted values.
constexpr int64_t attention_state_floats(int64_t head_dim) { return 16 + (head_dim + 15) / 16 * 16; }

// Weights to blocks of a format that has `encode`: rows of `cols` float32 values, one directly after the other.
struct QuantizeArgs {
  const Format* format;
  const float* x;
  const float* importance;   // [cols], above 0, of about 1; null: 1
  int64_t cols;
  uint8_t* out;
};

struct KernelTable {
  const char* name;

  // `rows` rows of x become rows first_row, first_row + 1 … of the int8 buffer a8 (layout: quant/a8.h).
  void (*quantize_a8)(const float* x, int64_t ldx, int64_t first_row, int64_t rows, int64_t cols, uint8_t* a8);
  // Panels panel_begin … panel_end - 1 of the product, all m rows. `scratch`: matmul_scratch_floats floats of the
  // calling thread, 64-byte aligned.
  void (*matmul)(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end, float* scratch);
  int64_t (*matmul_scratch_floats)(const MatmulArgs& args);

  // `scratch` of norm and glu: `width` floats rounded up to 16, used when `out` is null.
  void (*norm)(const NormArgs& args, int64_t row_begin, int64_t row_end, float* scratch);
  void (*glu)(const GluArgs& args, int64_t row_begin, int64_t row_end, float* scratch);
  void (*add)(const AddArgs& args, int64_t row_begin, int64_t row_end);
  void (*scale)(const ScaleArgs& args, int64_t row_begin, int64_t row_end);
  void (*clamp)(const ClampArgs& args, int64_t row_begin, int64_t row_end);
  void (*softcap)(const SoftcapArgs& args, int64_t row_begin, int64_t row_end);
  void (*rope_kv)(const RopeKvArgs& args, int64_t row_begin, int64_t row_end);
  // All splits of a tile, into `out`. `scratch`: attention_scratch_floats, 64-byte aligned.
  void (*attention)(const AttentionArgs& args, const AttentionTile& tile, float* scratch);
  // One split of a tile: the states [KV heads][rows][heads of the group] of attention_state_floats each, 64-byte aligned.
  void (*attention_split)(const AttentionArgs& args, const AttentionTile& tile, float* scratch, float* states);
  // Combines states [splits][KV heads][rows][heads of the group] of a tile and writes its rows of `out`.
  void (*attention_combine)(const AttentionArgs& args, const AttentionTile& tile, float* states);
  int64_t (*attention_scratch_floats)(const AttentionArgs& args);
  // As quantize_a8, in two terms: rows 2·first_row … of a8, two for each row of x.
  void (*quantize_a8_two_terms)(const float* x, int64_t ldx, int64_t first_row, int64_t rows, int64_t cols,
                                uint8_t* a8);
  // Blocks block_begin … block_end - 1, counted over all rows, of finite values that float16 holds. Blocks are independent
  // of each other.
  void (*quantize)(const QuantizeArgs& args, int64_t block_begin, int64_t block_end);
  // Arithmetic in registers, for measuring: float32 multiply-adds, products of bytes. Return the number of operations
  // (a multiply-add is two); `out` takes 16 floats that mean nothing.
  int64_t (*float_peak)(int64_t repeats, float* out);
  int64_t (*int8_peak)(int64_t repeats, float* out);
};

namespace scalar {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace amx {
extern const KernelTable kTable;
// Whether the tile instructions give what they should; in a thread that flushes subnormals, on a machine that has them.
bool tiles_work();
}
namespace amx_emulated {  // in builds for tests: amx with its tiles emulated
extern const KernelTable kTable;
}
namespace neon {
extern const KernelTable kTable;
}

}  // namespace puna
