// Formats, int8 activations and matrix products.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "compare.h"
#include "core/cpu_features.h"
#include "guarded.h"
#include "kernel_calls.h"
#include "quant/a8.h"

namespace puna::replay {
namespace {

constexpr int64_t kFloat = sizeof(float);

// ---- int8 activations ------------------------------------------------------------------------------------------------

int64_t padded_bytes(int64_t rows, int64_t cols) { return (rows + 15) / 16 * 16 * a8_row_bytes(cols); }

// A recorded block has the sums of its codes in both forms, one after the other.
constexpr int64_t kFormBytes = kA8BlockBytes - kA8Minus8, kRecordedBytes = kA8BlockBytes + kFormBytes;

std::vector<uint8_t> in_form(bool is_second, const std::vector<uint8_t>& recorded) {
  std::vector<uint8_t> blocks;
  for (auto from = recorded.begin(); from != recorded.end(); from += kRecordedBytes) {
    const auto sums = from + kA8Minus8 + (is_second ? kFormBytes : 0);
    blocks.insert(blocks.end(), from, from + kA8Minus8);
    blocks.insert(blocks.end(), sums, sums + kFormBytes);
  }
  return blocks;
}

// The blocks of each row without what pads them, which must be as Guarded fills it.
bool take_blocks(const std::string& where, const Guarded& a8, int64_t rows, int64_t cols, std::vector<uint8_t>& blocks) {
  const int64_t stride = a8_row_bytes(cols), used = a8_row_blocks(cols) * kA8BlockBytes;
  for (int64_t row = 0; row < a8.bytes() / stride; ++row) {
    const uint8_t* line = a8.data() + row * stride;
    const int64_t written = row < rows ? used : 0;
    if (std::any_of(line + written, line + stride, [](uint8_t byte) { return byte != 0xff; })) {
      std::printf("  %s: bytes behind row %lld were written\n", where.c_str(), static_cast<long long>(row));
      return false;
    }
    blocks.insert(blocks.end(), line, line + written);
  }
  return true;
}

// ---- packed matrices -------------------------------------------------------------------------------------------------

// A matrix as PackedMatrix keeps it, in guarded memory.
class Matrix {
 public:
  explicit Matrix(const Call& call)
      : format(format_of(call)),
        rows(call.integer("rows")),
        cols(call.integer("cols")),
        kernel(kernel_for(format, call.flag("full"))),
        is_stored_(kernel == Kernel::stored),
        source_(call.bytes("weights")),
        panel_bytes_(is_stored_ ? 0 : (cols + format.unit_elements - 1) / format.unit_elements * format.unit_bytes),
        memory_(is_stored_ ? static_cast<int64_t>(source_.size()) : panels() * panel_bytes_, is_stored_ ? 1 : kAligned) {
    if (is_stored_) {
      std::memcpy(memory_.data(), source_.data(), source_.size());
      return;
    }
    std::memset(memory_.data(), 0, static_cast<size_t>(memory_.bytes()));
    for (int64_t row = 0; row < rows; ++row) {
      format.pack_row(source_.data() + row * row_bytes(), cols, panel_of(row), static_cast<int>(row % kPanelRows));
    }
  }

  int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  int64_t row_bytes() const { return cols / format.block_elements * format.block_bytes; }
  const uint8_t* data() const { return memory_.data(); }

  // Whether every stored byte can be had back.
  bool is_lossless(const std::string& where) const {
    if (is_stored_) return true;
    for (int64_t row = 0; row < rows; ++row) {
      const Guarded blocks(row_bytes());
      format.unpack_row(panel_of(row), cols, static_cast<int>(row % kPanelRows), blocks.data());
      const uint8_t* stored = source_.data() + row * row_bytes();
      if (!is_equal(where + ", row " + std::to_string(row) + " read back", blocks.data(), stored, row_bytes())) {
        return false;
      }
    }
    return true;
  }

  const Format& format;
  const int64_t rows, cols;
  const Kernel kernel;

 private:
  uint8_t* panel_of(int64_t row) const { return memory_.data() + row / kPanelRows * panel_bytes_; }

  bool is_stored_;
  std::vector<uint8_t> source_;
  int64_t panel_bytes_;
  Guarded memory_;
};

// ---- products --------------------------------------------------------------------------------------------------------

enum class Residual : uint8_t { none, apart, in_place };

// Some rows of the recorded product.
struct Rows {
  int64_t first, count;
};

class Product {
 public:
  // x [m, cols], residual [m, rows] or empty, recorded [m, rows].
  Product(const Call& call, const KernelTable& kernels, const Matrix& matrix, const std::vector<float>& x,
          const std::vector<float>& residual, const std::vector<float>& recorded)
      : call(call), kernels(kernels), matrix(matrix), x(x), residual(residual), recorded(recorded) {}

  // Panels in one call, or one by one; bfloat16 in every way that this machine has.
  bool check(Rows part, Residual kind, bool is_divided) const {
    const bool has_choice = matrix.kernel == Kernel::bf16 && cpu_features().bf16_dot;
    return check(part, kind, is_divided, false) && (!has_choice || check(part, kind, is_divided, true));
  }

 private:
  bool check(Rows part, Residual kind, bool is_divided, bool has_bf16_dot) const {
    const int64_t rows = matrix.rows, cols = matrix.cols, ldo = rows + 1;
    const bool two_terms = call.flag("two_terms");
    const Guarded operand(x.data() + part.first * cols, part.count * cols * kFloat);
    const int64_t code_rows = part.count * (two_terms ? 2 : 1);
    const bool is_coded = partner_of(matrix.kernel) == Partner::a8;
    const Guarded codes(is_coded ? padded_bytes(code_rows, cols) : 0, kAligned);
    const Guarded bias(floats_or_none("bias").data(), call.has("bias") ? rows * kFloat : 0);
    const Guarded out(((part.count - 1) * ldo + rows) * kFloat);

    MatmulArgs args = {};
    args.format = &matrix.format;
    args.packed = matrix.data();
    args.kernel = matrix.kernel;
    args.rows = rows;
    args.cols = cols;
    if (is_coded) {
      const auto quantize = two_terms ? kernels.quantize_a8_two_terms : kernels.quantize_a8;
      quantize(operand.floats(), cols, 0, part.count, cols, codes.data());
      args.a8 = codes.data();
      args.two_terms = two_terms;
    } else {
      args.x = operand.floats();
      args.ldx = cols;
    }
    args.has_bf16_dot = has_bf16_dot;
    args.m = part.count;
    args.out = out.floats();
    args.ldo = ldo;
    args.bias = call.has("bias") ? bias.floats() : nullptr;
    args.clip = call.number("clip");
    args.multiplier = call.number("multiplier");
    const Guarded apart(residual.data() + (kind == Residual::none ? 0 : part.first * rows),
                        kind == Residual::apart ? part.count * rows * kFloat : 0);
    if (kind == Residual::apart) {
      args.residual = apart.floats();
      args.ldr = rows;
    } else if (kind == Residual::in_place) {
      for (int64_t row = 0; row < part.count; ++row) {
        std::copy_n(residual.data() + (part.first + row) * rows, rows, out.floats() + row * ldo);
      }
      args.residual = out.floats();
      args.ldr = ldo;
    }
    const Guarded scratch(kernels.matmul_scratch_floats(args) * kFloat, kAligned);
    const int64_t step = is_divided ? 1 : matrix.panels();
    for (int64_t panel = 0; panel < matrix.panels(); panel += step) {
      kernels.matmul(args, panel, panel + step, scratch.floats());
    }
    const std::string where = call.where() + ", " + std::to_string(part.count) + " rows from " +
                              std::to_string(part.first) + (is_divided ? ", panel by panel" : "");
    return is_equal_rows(where, out.floats(), ldo, recorded.data() + part.first * rows, part.count, rows);
  }

  std::vector<float> floats_or_none(const std::string& name) const {
    return call.has(name) ? call.floats(name) : std::vector<float>{};
  }

  const Call& call;
  const KernelTable& kernels;
  const Matrix& matrix;
  const std::vector<float>&x, &residual, &recorded;
};

// The rows again and again, so that they no longer fit into the part of a cache that a chunk of them may take.
std::vector<float> repeated(const std::vector<float>& values, int64_t times) {
  std::vector<float> result;
  for (int64_t i = 0; i < times; ++i) result.insert(result.end(), values.begin(), values.end());
  return result;
}

}  // namespace

bool check_dequantize(const Call& call, const KernelTable&) {
  const Format& format = format_of(call);
  const std::vector<uint8_t> stored = call.bytes("data");
  const std::vector<float> recorded = call.floats("out");
  const int64_t elements = static_cast<int64_t>(recorded.size());
  const Guarded blocks(stored.data(), static_cast<int64_t>(stored.size()));
  const Guarded out(elements * kFloat);
  format.dequantize(blocks.data(), elements, out.floats());
  return is_equal(call.where(), out.floats(), recorded.data(), elements);
}

bool check_quantize(const Call& call, const KernelTable& kernels) {
  const std::vector<float> x = call.floats("x");
  const int64_t rows = call.integer("rows"), cols = call.integer("cols"), ldx = cols + 3;
  const int64_t terms = call.flag("two_terms") ? 2 : 1;
  const auto quantize = terms == 2 ? kernels.quantize_a8_two_terms : kernels.quantize_a8;
  const std::vector<uint8_t> recorded = call.bytes("out");
  const Guarded operand(((rows - 1) * ldx + cols) * kFloat);
  for (int64_t row = 0; row < rows; ++row) std::copy_n(x.data() + row * cols, cols, operand.floats() + row * ldx);

  bool is_good = true;
  for (const bool is_divided : {false, true}) {
    const std::string where = call.where() + (is_divided ? ", row by row" : "");
    const Guarded a8(padded_bytes(terms * rows, cols), kAligned);
    if (is_divided) {
      for (int64_t row = rows - 1; row >= 0; --row) {
        quantize(operand.floats() + row * ldx, ldx, row, 1, cols, a8.data());
      }
    } else {
      quantize(operand.floats(), ldx, 0, rows, cols, a8.data());
    }
    std::vector<uint8_t> blocks;
    const std::vector<uint8_t> wanted = in_form(false, recorded), other = in_form(true, recorded);
    is_good &= take_blocks(where, a8, terms * rows, cols, blocks) && blocks.size() == wanted.size() &&
               (blocks == other || is_equal(where, blocks.data(), wanted.data(), static_cast<int64_t>(blocks.size())));
  }
  return is_good;
}

bool check_matmul(const Call& call, const KernelTable& kernels) {
  const Matrix matrix(call);
  if (!matrix.is_lossless(call.where())) return false;
  const bool has_tiles = std::string_view(kernels.name).starts_with("amx");
  const std::vector<float> x = call.floats("x");
  const std::vector<float> recorded = call.floats(has_tiles && call.has("out_on_tiles") ? "out_on_tiles" : "out");
  const std::vector<float> residual = call.has("residual") ? call.floats("residual") : std::vector<float>{};
  const Product product{call, kernels, matrix, x, residual, recorded};
  const int64_t m = static_cast<int64_t>(x.size()) / matrix.cols;

  // Every width of tile and every rest, from the beginning and from elsewhere.
  bool is_good = true;
  for (const int64_t count : {1, 2, 3, 5, 8, 9, 17, 24, 25, 33, 50}) {
    if (count > m) break;
    const int64_t last = m - count;
    if (residual.empty()) {
      is_good &= product.check({0, count}, Residual::none, false) && product.check({last, count}, Residual::none, true);
    } else {
      is_good &= product.check({0, count}, Residual::apart, true) &&
                 product.check({last, count}, Residual::in_place, false);
    }
  }
  if (!call.flag("repeat")) return is_good;
  constexpr int64_t kChunkBytes = 262144;
  const int64_t times = kChunkBytes / (a8_row_bytes(matrix.cols) * m) + 2;
  const std::vector<float> many_x = repeated(x, times), many = repeated(recorded, times);
  const Product large{call, kernels, matrix, many_x, residual, many};
  return is_good && large.check({0, m * times}, Residual::none, false);
}

}  // namespace puna::replay
