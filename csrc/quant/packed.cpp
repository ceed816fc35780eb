#include "packed.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

namespace puna {
namespace {

constexpr int64_t kPackColumns = 256;  // whole blocks and units of every format
constexpr size_t kHugePage = 1 << 21;  // of x86-64, and of aarch64 with pages of 4 KiB

int64_t checked_product(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) throw std::invalid_argument("the matrix is too large for this machine");
  return product;
}

}  // namespace

void PackedMatrix::Unmap::operator()(uint8_t* memory) const { munmap(memory, static_cast<size_t>(bytes)); }

void PackedMatrix::plan() {
  const Format& format = *format_;
  if (rows_ <= 0 || cols_ <= 0 || cols_ % format.block_elements != 0) {
    throw std::invalid_argument("rows and columns must be positive, columns whole blocks of the format");
  }
  // Far below what int64 offsets hold, far above any model.
  if (cols_ > std::numeric_limits<int32_t>::max() || rows_ > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("more than 2**31-1 rows or columns");
  }
  if (kernel_ == Kernel::stored) {
    stride_ = checked_product(cols_ / format.block_elements, format.block_bytes);
    bytes_ = checked_product(rows_, stride_);
  } else {
    stride_ = checked_product((cols_ + format.unit_elements - 1) / format.unit_elements, format.unit_bytes);
    bytes_ = checked_product(panels(), stride_);
  }
}

PackedMatrix::PackedMatrix(const Format& format, int64_t rows, int64_t cols, bool full_precision)
    : format_(&format), kernel_(kernel_for(format, full_precision)), rows_(rows), cols_(cols) {
  plan();
  // A mapping is zeroed, as packing wants it, and touched first by the thread that packs. One that begins at a huge
  // page has them from its first byte to the last whole one; the room for that is address space, not memory.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), size = static_cast<size_t>(bytes_);
  const size_t spare = size >= kHugePage ? kHugePage - page : 0;
  void* memory = mmap(nullptr, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  uint8_t* begin = static_cast<uint8_t*>(memory);
  if (spare > 0) {
    const size_t before = -reinterpret_cast<uintptr_t>(begin) % kHugePage;
    const size_t whole = (size + page - 1) / page * page;
    if (before > 0) munmap(begin, before);
    if (before < spare) munmap(begin + before + whole, spare - before);
    begin += before;
  }
  madvise(begin, size, MADV_HUGEPAGE);
  memory_ = std::unique_ptr<uint8_t, Unmap>(begin, Unmap{bytes_});
  data_ = begin;
}

PackedMatrix::PackedMatrix(const Format& format, int64_t rows, int64_t cols, bool full_precision,
                           std::shared_ptr<const uint8_t> packed, int64_t available)
    : format_(&format), kernel_(kernel_for(format, full_precision)), rows_(rows), cols_(cols), owner_(std::move(packed)) {
  plan();
  data_ = owner_.get();
  if (available < bytes_ || reinterpret_cast<uintptr_t>(data_) % 64 != 0) {
    throw std::invalid_argument("the packed matrix is not all there, or not at a multiple of 64");
  }
}

void PackedMatrix::pack(const uint8_t* source, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t first = panel * kPanelRows, last = std::min(first + kPanelRows, rows_);
    if (kernel_ == Kernel::stored) {
      memcpy(memory_.get() + first * stride_, source + first * stride_, static_cast<size_t>((last - first) * stride_));
      continue;
    }
    // Sixteen rows a few columns at a time, so that the part of the panel they share stays in the nearest cache.
    uint8_t* units = memory_.get() + panel * stride_;
    for (int64_t k = 0; k < cols_; k += kPackColumns) {
      const int64_t count = std::min(kPackColumns, cols_ - k);
      const int64_t offset = k / format_->block_elements * format_->block_bytes;
      for (int64_t row = first; row < last; ++row) {
        format_->pack_row(source + row * row_bytes() + offset, count, units, static_cast<int>(row - first));
      }
      units += kPackColumns / format_->unit_elements * format_->unit_bytes;
    }
  }
}

void PackedMatrix::row_f32(int64_t row, float* out) const {
  if (kernel_ == Kernel::stored) {
    format_->dequantize(data_ + row * stride_, cols_, out);
    return;
  }
  std::vector<uint8_t> blocks(static_cast<size_t>(row_bytes()));
  format_->unpack_row(data_ + row / kPanelRows * stride_, cols_,
                           static_cast<int>(row % kPanelRows), blocks.data());
  format_->dequantize(blocks.data(), cols_, out);
}

}  // namespace puna
