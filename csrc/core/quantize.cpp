#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "../simd/half.h"
#include "text.h"
#include "thread_pool.h"
#include "worker.h"

namespace puna {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
// Of the mean: a column that the text never used still keeps its weights in sight.
constexpr float kLeastImportance = 1e-3f;

// The largest float16: with values up to it, every scale is one.
constexpr float kMostHalf = 65504.0f;

bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

void keep_least(std::atomic<int64_t>& least, int64_t index) {
  int64_t seen = least.load(std::memory_order_relaxed);
  while (index < seen && !least.compare_exchange_weak(seen, index, std::memory_order_relaxed)) {
  }
}

// The importance of columns in units of its mean.
std::vector<float> scaled_importance(const float* importance, int64_t cols) {
  double sum = 0;
  for (int64_t i = 0; i < cols; ++i) {
    if (!is_finite(importance[i]) || importance[i] < 0) {
      invalid("importance[", i, "] is ", importance[i], "; a finite number that is not negative is expected");
    }
    sum += importance[i];
  }
  if (sum <= 0) invalid("the importance is zero in all columns");
  const double mean = sum / static_cast<double>(cols);
  std::vector<float> scaled(static_cast<size_t>(cols));
  for (int64_t i = 0; i < cols; ++i) {
    scaled[static_cast<size_t>(i)] = std::max(static_cast<float>(importance[i] / mean), kLeastImportance);
  }
  return scaled;
}

// Converts values; returns the first that becomes infinite, or -1.
int64_t convert(const Format& format, const float* x, int64_t begin, int64_t end, uint8_t* out) {
  int64_t bad = -1;
  for (int64_t i = begin; i < end; ++i) {
    if (format.kernel == Kernel::f32) {
      std::memcpy(out + 4 * i, x + i, 4);
      continue;
    }
    const bool is_half = format.kernel == Kernel::f16;
    const uint16_t value = is_half ? float_to_half(x[i]) : float_to_bf16(x[i]);
    std::memcpy(out + 2 * i, &value, 2);
    if ((value & (is_half ? 0x7c00 : 0x7f80)) == (is_half ? 0x7c00 : 0x7f80) && bad < 0) bad = i;
  }
  return bad;
}

class Quantization final : public Stages {
 public:
  Quantization(const KernelTable& kernels, const QuantizeArgs& args, int64_t blocks, int threads)
      : kernels_(kernels), args_(args),
        // Sixteen lanes are at most sixteen blocks.
        division_(Work{.units = (blocks + kUnit - 1) / kUnit, .most = 64}, threads), blocks_(blocks) {}

  int64_t next(int) override { return is_started_++ ? 0 : division_.pieces(); }
  void piece(int, int64_t index) override {
    const Range range = division_.piece(index);
    const int64_t begin = range.begin * kUnit, end = std::min(range.end * kUnit, blocks_);
    const int64_t width = args_.format->block_elements;
    const bool is_searched = args_.format->encode != nullptr;
    for (int64_t i = begin * width; i < end * width; ++i) {
      const bool is_held = is_finite(args_.x[i]) && !(is_searched && std::fabs(args_.x[i]) > kMostHalf);
      if (is_held) continue;
      keep_least(is_finite(args_.x[i]) ? too_large : not_finite, i);
      return;
    }
    if (is_searched) {
      kernels_.quantize(args_, begin, end);
    } else {
      const int64_t bad = convert(*args_.format, args_.x, begin, end, args_.out);
      if (bad >= 0) keep_least(too_large, bad);
    }
  }

  std::atomic<int64_t> not_finite{kNone}, too_large{kNone};  // index of the first value of that kind

 private:
  static constexpr int64_t kUnit = 16;
  const KernelTable& kernels_;
  const QuantizeArgs& args_;
  Division division_;
  int64_t blocks_;
  int is_started_ = 0;
};

}  // namespace

std::vector<uint8_t> quantize_rows(const KernelTable& kernels, const Format& format, const float* x, int64_t rows,
                                   int64_t cols, const float* importance, int64_t first_row, int threads) {
  const bool is_plain = format.kernel == Kernel::f32 || format.kernel == Kernel::f16 || format.kernel == Kernel::bf16;
  if (format.encode == nullptr && !is_plain) invalid("there is no quantizer for ", format.name);
  if (cols <= 0 || cols % format.block_elements != 0) {
    invalid(cols, " columns are not whole blocks of ", format.block_elements, " values, which ", format.name, " needs");
  }
  const int64_t blocks = rows * (cols / format.block_elements);
  std::vector<uint8_t> out(static_cast<size_t>(blocks * format.block_bytes));
  std::vector<float> scaled;
  if (importance != nullptr) scaled = scaled_importance(importance, cols);
  const QuantizeArgs args = {&format, x, importance == nullptr ? nullptr : scaled.data(), cols, out.data()};
  Quantization quantization(kernels, args, blocks, threads);
  ThreadPool::instance().run(threads, quantization);
  const int64_t not_finite = quantization.not_finite, too_large = quantization.too_large;
  if (not_finite != kNone) {
    invalid("the value in row ", first_row + not_finite / cols, ", column ", not_finite % cols, " is ", x[not_finite]);
  }
  if (too_large != kNone) {
    invalid("the value in row ", first_row + too_large / cols, ", column ", too_large % cols, " is ", x[too_large],
            ", too large for ", format.name);
  }
  return out;
}

}  // namespace puna
