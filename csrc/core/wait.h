// Waiting for another thread: spin for a moment, then let others run, then sleep.
#pragma once

#include <atomic>
#include <cstdint>

namespace puna {

// Tells the processor that this thread is spinning.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

// How long a wait spins before it gives way. With more threads than cores spinning only delays the one waited for.
enum class Patience : uint8_t { spin, yield };

// Returns once `value` differs from `old`. `sleepers` counts the threads that have to be woken.
void wait_while_equal(const std::atomic<uint32_t>& value, uint32_t old, std::atomic<uint32_t>& sleepers,
                      Patience patience);

// Wakes the sleepers of `value`, which has been changed before, sequentially consistent.
void wake_all(const std::atomic<uint32_t>& value, const std::atomic<uint32_t>& sleepers);

}  // namespace puna
