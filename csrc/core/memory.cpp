#include "memory.h"

#include <new>

#include <sys/mman.h>

namespace puna {

Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

uint8_t* Memory::reserve(int64_t bytes) {
  if (bytes <= bytes_) return data_;
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
  data_ = nullptr;
  bytes_ = 0;
  void* memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // fewer address translations; a wish only
  data_ = static_cast<uint8_t*>(memory);
  bytes_ = bytes;
  return data_;
}

}  // namespace puna
