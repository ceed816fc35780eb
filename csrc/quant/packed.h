// A weight matrix in memory of its own, in the form the kernels read.
#pragma once

#include <stdint.h>

#include <memory>
#include <stdexcept>

#include "format.h"

namespace puna {

class PackedMatrix {
 public:
  // Room for rows x cols values of `format`. With `full_precision` products take float32 activations: the blocks of
  // formats whose kernel rounds these to integers are kept as stored. Throws std::invalid_argument when cols are not whole blocks or sizes overflow.
  PackedMatrix(const Format& format, int64_t rows, int64_t cols, bool full_precision);

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
  const uint8_t* data() const { return memory_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Unmap {
    int64_t bytes;
    void operator()(uint8_t* memory) const;
  };
  const Format* format_;
  Kernel kernel_;
  int64_t rows_, cols_;
  int64_t stride_;  // bytes of a panel, or of a stored row
  int64_t bytes_;
  std::unique_ptr<uint8_t, Unmap> memory_;
};

}  // namespace puna
