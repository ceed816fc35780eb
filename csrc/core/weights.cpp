#include "weights.h"

#include <algorithm>

#include "text.h"
#include "thread_pool.h"

namespace puna {

std::shared_ptr<PackedMatrix> pack_matrix(const Format& format, const uint8_t* source, int64_t bytes, int64_t rows,
                                          int64_t cols, bool full_precision, int threads) {
  if (rows <= 0 || cols <= 0) invalid("a matrix has at least one row and one column, got ", rows, " x ", cols);
  if (cols % format.block_elements != 0) {
    invalid(cols, " columns are not whole blocks of ", format.block_elements, " values, which ", format.name, " needs");
  }
  const int64_t row_blocks = cols / format.block_elements;
  int64_t row_bytes = 0, expected = 0;
  if (__builtin_mul_overflow(row_blocks, int64_t{format.block_bytes}, &row_bytes) ||
      __builtin_mul_overflow(row_bytes, rows, &expected) || expected != bytes) {
    invalid("data has ", bytes, " bytes; ", rows, " rows of ", cols, " values in ", format.name, " take ", row_blocks,
            " blocks of ", format.block_bytes, " bytes each");
  }
  auto matrix = std::make_shared<PackedMatrix>(format, rows, cols, full_precision);
  // Consecutive panels for each thread, as the products read them: pages lie near the core that touched them first.
  const int64_t panels = matrix->panels();
  ThreadPool::instance().run_together(threads, [&](int thread) {
    matrix->pack(source, panels * thread / threads, panels * (thread + 1) / threads);
  });
  return matrix;
}

}  // namespace puna
