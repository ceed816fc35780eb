#include "product.h"

#include "../quant/a8.h"
#include "cpu_features.h"
#include "memory.h"
#include "text.h"
#include "thread_pool.h"

namespace puna {
namespace {

// Rows up to which a product is bound by reading the weights. With more, some panels stay in the cache while all rows
// are multiplied by them.
constexpr int64_t kFewRows = 8, kMostPanels = 32;

int64_t panels_of(const MatmulArgs& args) { return (args.rows + kPanelRows - 1) / kPanelRows; }

// Rounds x to int8 where the matrices want it so, then multiplies.
class Multiplication final : public Stages {
 public:
  Multiplication(const KernelTable& kernels, std::span<const MatmulArgs> segments, const float* x, uint8_t* a8,
                 float* scratch, int64_t scratch_floats, int threads)
      : kernels_(kernels), segments_(segments), x_(x), a8_(a8), scratch_(scratch), scratch_floats_(scratch_floats),
        threads_(threads) {}

  int64_t next(int) override {
    const int64_t m = segments_.front().m;
    ++stage_;
    if (stage_ == 1 && a8_ == nullptr) ++stage_;
    if (stage_ == 3 || m == 0) return 0;
    division_ = Division(stage_ == 1 ? Work{.units = m} : product_work(segments_), threads_);
    return division_.pieces();
  }

  void piece(int thread, int64_t index) override {
    const auto [begin, end] = division_.piece(index);
    if (stage_ == 1) {
      const int64_t cols = segments_.front().cols;
      const auto quantize = segments_.front().two_terms ? kernels_.quantize_a8_two_terms : kernels_.quantize_a8;
      quantize(x_ + begin * cols, cols, begin, end - begin, cols, a8_);
    } else {
      run_products({kernels_, scratch_ + thread * scratch_floats_}, segments_, begin, end);
    }
  }

 private:
  const KernelTable& kernels_;
  std::span<const MatmulArgs> segments_;
  const float* x_;
  uint8_t* a8_;
  float* scratch_;
  int64_t scratch_floats_;
  int threads_;
  int stage_ = 0;
  Division division_;
};

}  // namespace

MatmulArgs product_args(const PackedMatrix& matrix) {
  MatmulArgs args = {};
  args.format = &matrix.format();
  args.kernel = matrix.kernel();
  args.packed = matrix.data();
  args.rows = matrix.rows();
  args.cols = matrix.cols();
  args.multiplier = 1.0f;
  args.has_bf16_dot = cpu_features().bf16_dot;
  return args;
}

void take_exactly(MatmulArgs& args) {
  args.two_terms = partner_of(args.kernel) == Partner::a8;
  if (args.kernel == Kernel::bf16) args.kernel = Kernel::bf16_exact;
}

Work product_work(std::span<const MatmulArgs> segments) {
  Work work;
  const int64_t rows = segments.front().m;
  if (rows == 0) return work;
  for (const MatmulArgs& args : segments) work.units += panels_of(args);
  if (rows > kFewRows) work.most = kMostPanels;
  return work;
}

void run_products(const Worker& worker, std::span<const MatmulArgs> segments, int64_t begin, int64_t end) {
  int64_t first = 0;
  for (const MatmulArgs& args : segments) {
    const int64_t count = panels_of(args);
    const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, count);
    if (from < to) worker.kernels.matmul(args, from, to, worker.scratch);
    first += count;
  }
}

std::vector<float> multiply(const KernelTable& kernels, std::span<const PackedMatrix* const> matrices, const float* x,
                            int64_t m, int threads, bool two_terms) {
  if (matrices.empty()) invalid("matmul needs at least one matrix");
  const int64_t cols = matrices.front()->cols();
  const Partner partner = matrices.front()->partner();
  int64_t width = 0;
  for (const PackedMatrix* matrix : matrices) {
    if (matrix->cols() != cols) invalid("matrices of one matmul have ", cols, " and ", matrix->cols(), " columns");
    if (matrix->partner() != partner) invalid("matrices of one matmul take float32 and int8 activations");
    width += matrix->rows();
  }
  Memory a8;
  if (partner == Partner::a8) a8.reserve((m + 15) / 16 * 16 * a8_row_bytes(cols) * (two_terms ? 2 : 1));
  std::vector<float> out(static_cast<size_t>(m * width));
  std::vector<MatmulArgs> segments;
  int64_t scratch_floats = 0, column = 0;
  for (const PackedMatrix* matrix : matrices) {
    MatmulArgs& args = segments.emplace_back(product_args(*matrix));
    args.x = partner == Partner::f32 ? x : nullptr;
    args.ldx = cols;
    args.a8 = partner == Partner::a8 ? a8.data() : nullptr;
    if (two_terms) take_exactly(args);
    args.m = m;
    args.out = out.data() + column;
    args.ldo = width;
    scratch_floats = std::max(scratch_floats, (kernels.matmul_scratch_floats(args) + 15) / 16 * 16);
    column += matrix->rows();
  }
  Memory scratch;
  scratch.reserve(scratch_floats * threads * static_cast<int64_t>(sizeof(float)));
  float* floats = reinterpret_cast<float*>(scratch.data());
  Multiplication stages(kernels, segments, x, a8.data(), floats, scratch_floats, threads);
  ThreadPool::instance().run(threads, stages);
  return out;
}

}  // namespace puna
