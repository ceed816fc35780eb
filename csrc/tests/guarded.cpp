#include "guarded.h"

#include <cstring>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size) (static_cast<void>(begin), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(begin, size) (static_cast<void>(begin), static_cast<void>(size))
#endif

namespace puna::replay {

Guarded::Guarded(int64_t bytes, int64_t alignment) : bytes_(bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t held = (bytes + alignment - 1) / alignment * alignment;
  const int64_t inside = (held + page - 1) / page * page;
  mapped_ = inside + 2 * page;
  void* memory = mmap(nullptr, static_cast<size_t>(mapped_), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<uint8_t*>(memory);
  data_ = mapping_ + page + inside - held;
  if (inside == 0) return;
  if (mprotect(mapping_ + page, static_cast<size_t>(inside), PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping_, static_cast<size_t>(mapped_));
    throw std::bad_alloc();
  }
  std::memset(mapping_ + page, 0xff, static_cast<size_t>(inside));
  ASAN_POISON_MEMORY_REGION(mapping_ + page, static_cast<size_t>(data_ - (mapping_ + page)));
  ASAN_POISON_MEMORY_REGION(data_ + bytes, static_cast<size_t>(held - bytes));
}

Guarded::Guarded(const void* source, int64_t bytes, int64_t alignment) : Guarded(bytes, alignment) {
  if (bytes > 0) std::memcpy(data_, source, static_cast<size_t>(bytes));
}

Guarded::~Guarded() {
  ASAN_UNPOISON_MEMORY_REGION(mapping_, static_cast<size_t>(mapped_));
  munmap(mapping_, static_cast<size_t>(mapped_));
}

}  // namespace puna::replay
