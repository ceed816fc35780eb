// Memory that faults where a kernel leaves it.
#pragma once

#include <cstdint>

namespace puna::replay {

// `bytes` of memory that end where a page begins that cannot be touched, so that reading or writing behind them ends
// the process, on every machine and whatever the instruction. AddressSanitizer also watches what lies before them.
// With an alignment, up to that many bytes lie between the end and the page; they are watched likewise.
class Guarded {
 public:
  // Filled with 0xff: NaN for whoever reads floats that were never written. Throws std::bad_alloc.
  explicit Guarded(int64_t bytes, int64_t alignment = 1);
  // With these contents.
  Guarded(const void* source, int64_t bytes, int64_t alignment = 1);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  uint8_t* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* mapping_ = nullptr;
  int64_t mapped_ = 0;
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace puna::replay
