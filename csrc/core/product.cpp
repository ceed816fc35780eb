#include "product.h"

#include "../quant/a8.h"
#include "memory.h"
#include "text.h"

namespace puna {
namespace {

// Rows up to which a product is bound by reading the weights: large chunks, long streams.
constexpr int64_t kFewRows = 8;
constexpr int64_t kMaxChunk = 16;  // panels: with more rows, chunks that leave the last threads little to wait for

int64_t chunk_of(int64_t panels, int64_t rows, int threads) {
  if (rows <= kFewRows) return std::max<int64_t>(1, (panels + threads * 4 - 1) / (threads * 4));
  return std::clamp<int64_t>(panels / (threads * 4), 1, kMaxChunk);
}

}  // namespace

MatmulArgs product_args(const PackedMatrix& matrix) {
  MatmulArgs args = {};
  args.format = &matrix.format();
  args.kernel = matrix.kernel();
  args.packed = matrix.data();
  args.rows = matrix.rows();
  args.cols = matrix.cols();
  args.multiplier = 1.0f;
  return args;
}

void run_products(const Worker& worker, std::span<const MatmulArgs> segments, Counter& counter) {
  const auto panels_of = [](const MatmulArgs& args) { return (args.rows + kPanelRows - 1) / kPanelRows; };
  int64_t panels = 0;
  for (const MatmulArgs& args : segments) panels += panels_of(args);
  const int64_t chunk = chunk_of(panels, segments.empty() ? 0 : segments.front().m, worker.threads);
  worker.take(counter, panels, chunk, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const MatmulArgs& args : segments) {
      const int64_t count = panels_of(args);
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, count);
      if (from < to) worker.kernels.matmul(args, from, to, worker.scratch);
      first += count;
    }
  });
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
  if (two_terms && partner != Partner::a8) invalid("two_terms is for matrices that take int8 activations");
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
    args.two_terms = two_terms;
    args.m = m;
    args.out = out.data() + column;
    args.ldo = width;
    scratch_floats = std::max(scratch_floats, (kernels.matmul_scratch_floats(args) + 15) / 16 * 16);
    column += matrix->rows();
  }
  Memory scratch;
  scratch.reserve(scratch_floats * threads * static_cast<int64_t>(sizeof(float)));
  float* floats = reinterpret_cast<float*>(scratch.data());
  Counter counter;
  ThreadPool::instance().run(threads, [&](int thread, Barrier& barrier) {
    const Worker worker{kernels, thread, threads, barrier, floats + thread * scratch_floats};
    if (partner == Partner::a8) {
      worker.share(m, 1, [&](int64_t begin, int64_t end) {
        const auto quantize = two_terms ? kernels.quantize_a8_two_terms : kernels.quantize_a8;
        quantize(x + begin * cols, cols, begin, end - begin, cols, a8.data());
      });
      barrier.meet();
    }
    run_products(worker, segments, counter);
  });
  return out;
}

}  // namespace puna
