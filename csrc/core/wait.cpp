#include "wait.h"

#include <chrono>
#include <climits>

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace puna {
namespace {

using Clock = std::chrono::steady_clock;

// Short: when other programs leave one core to two of our threads, the one that spins keeps the other from running.
// Yielding costs half a microsecond a time where nobody else wants the core, and is all it takes where somebody does.
constexpr auto kSpin = std::chrono::nanoseconds(1500);
constexpr auto kYield = std::chrono::microseconds(100);
constexpr int kPausesPerLook = 16;  // at the clock

const uint32_t* address(const std::atomic<uint32_t>& value) {
  static_assert(sizeof value == sizeof(uint32_t) && std::atomic<uint32_t>::is_always_lock_free);
  return reinterpret_cast<const uint32_t*>(&value);
}

}  // namespace

void wait_while_equal(const std::atomic<uint32_t>& value, uint32_t old, std::atomic<uint32_t>& sleepers,
                      Patience patience) {
  const auto changed = [&] { return value.load(std::memory_order_acquire) != old; };
  if (changed()) return;
  const Clock::time_point begin = Clock::now();
  const Clock::time_point spin_end = patience == Patience::spin ? begin + kSpin : begin;
  const Clock::time_point yield_end = spin_end + kYield;
  Clock::time_point now = begin;
  while (now < spin_end) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (changed()) return;
      relax();
    }
    now = Clock::now();
  }
  while (now < yield_end) {
    sched_yield();
    if (changed()) return;
    now = Clock::now();
  }
  // Sequential consistency pairs this with wake_all: either it sees the sleeper, or the futex sees the new value.
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  while (value.load(std::memory_order_seq_cst) == old) {
    syscall(SYS_futex, address(value), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
  }
  sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void wake_all(const std::atomic<uint32_t>& value, const std::atomic<uint32_t>& sleepers) {
  if (sleepers.load(std::memory_order_seq_cst) == 0) return;
  syscall(SYS_futex, address(value), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace puna
