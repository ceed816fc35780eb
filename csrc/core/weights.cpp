#include "weights.h"

#include <algorithm>
#include <vector>

#include "blake2.h"
#include "mapped_file.h"
#include "text.h"
#include "thread_pool.h"

namespace puna {
namespace {

constexpr int64_t kHeldBytes = 1 << 20;  // letting pages go costs a few microseconds, whatever their number

}  // namespace

int64_t piece_rows(int64_t row_bytes) {
  constexpr int64_t kPieceBytes = 1 << 16;
  return (kPieceBytes / row_bytes / kPanelRows + 1) * kPanelRows;
}

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
  const int64_t piece = piece_rows(row_bytes), pieces = (rows + piece - 1) / piece;
  std::vector<Digest> digests(static_cast<size_t>(pieces));
  // Consecutive panels for each thread, as the products read them: pages lie near the core that touched them first.
  ThreadPool::instance().run_together(threads, [&](int thread) {
    const uint8_t* held = source + std::min(pieces * thread / threads * piece, rows) * row_bytes;
    for (int64_t i = pieces * thread / threads; i < pieces * (thread + 1) / threads; ++i) {
      const int64_t first = i * piece, last = std::min(first + piece, rows);
      const uint8_t* end = source + last * row_bytes;
      digests[static_cast<size_t>(i)] = blake2bp(source + first * row_bytes, (last - first) * row_bytes);
      matrix->pack(source, first / kPanelRows, (last + kPanelRows - 1) / kPanelRows);
      if (end - held >= kHeldBytes || i + 1 == pieces * (thread + 1) / threads) {
        MappedFile::release(held, end - held);
        held = end;
      }
    }
  });
  matrix->set_digest(blake2bp(digests.front().data(), pieces * static_cast<int64_t>(sizeof(Digest))));
  return matrix;
}

}  // namespace puna
