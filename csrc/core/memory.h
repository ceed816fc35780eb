// Memory that starts at a cache line, is zero, and grows.
#pragma once

#include <cstdint>

namespace puna {

class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // At least this many bytes, at a multiple of a page. Where it grows, what was there is lost and all of it is zero.
  // Throws std::bad_alloc.
  uint8_t* reserve(int64_t bytes);
  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace puna
