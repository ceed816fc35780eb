// A weight matrix in the form the kernels read, in memory of its own or in that of somebody else.
#pragma once

#include <stdint.h>

#include <array>
#include <memory>
#include <stdexcept>

#include "format.h"

namespace puna {

// Which packed bytes a format has. Add one when those of any format change: packed matrices are kept on disk.
inline constexpr int kPackedLayout = 2;

class PackedMatrix {
 public:
  // Room for rows x cols values of `format`. With `full_precision` products take float32 activations: the blocks of
  // formats whose kernel rounds these to integers are kept as stored. Throws std::invalid_argument when cols are not
  // whole blocks or sizes overflow.
  PackedMatrix(const Format& format, int64_t rows, int64_t cols, bool full_precision);

  // A matrix that was packed before, in memory that `owner` keeps: bytes() of it, at a multiple of 64.
  // Throws std::invalid_argument as above, and when `available` bytes are too few.
  PackedMatrix(const Format& format, int64_t rows, int64_t cols, bool full_precision,
               std::shared_ptr<const uint8_t> packed, int64_t available);

  // Fills panels begin..end from the whole stored matrix (row_bytes() per row). Different ranges may run at once.
  void pack(const uint8_t* source, int64_t panel_begin, int64_t panel_end);

  // Row `row` as float32, bit-equal to dequantizing the stored row.
  void row_f32(int64_t row, float* out) const;

  const Format& format() const { return *format_; }
  Kernel kernel() const { return kernel_; }
  Partner partner() const { return partner_of(kernel_); }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  int64_t row_bytes() const { return cols_ / format_->block_elements * format_->block_bytes; }
  // What the matrix products read: panels, or with Kernel::stored the rows as they came.
  const uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // Of the stored blocks, noted by whoever packed them; zeros before, and in a matrix of somebody else's memory.
  const std::array<uint8_t, 64>& digest() const { return digest_; }
  void set_digest(const std::array<uint8_t, 64>& digest) { digest_ = digest; }

 private:
  struct Unmap {
    int64_t bytes;
    void operator()(uint8_t* memory) const;
  };
  void plan();

  const Format* format_;
  Kernel kernel_;
  int64_t rows_, cols_;
  int64_t stride_;  // bytes of a panel, or of a stored row
  int64_t bytes_;
  std::unique_ptr<uint8_t, Unmap> memory_;  // of its own, or
  std::shared_ptr<const uint8_t> owner_;    // of somebody else
  const uint8_t* data_;
  std::array<uint8_t, 64> digest_{};
};

}  // namespace puna
