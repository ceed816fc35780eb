// One thread's view of a run.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "kernel_table.h"
#include "thread_pool.h"

namespace puna {

// Pieces of work that threads take one by one. Zero at the start of a run.
struct alignas(64) Counter {
  std::atomic<int64_t> next{0};
};

struct Worker {
  const KernelTable& kernels;
  int thread;
  int threads;
  Barrier& barrier;
  float* scratch;  // of this thread, as much as the instructions of the run asked for

  // Calls f(begin, end) with this thread's part of 0 … count-1: consecutive, in multiples of `grain`.
  template <typename F>
  void share(int64_t count, int64_t grain, F f) const {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t begin = grains * thread / threads * grain;
    const int64_t end = std::min(grains * (thread + 1) / threads * grain, count);
    if (begin < end) f(begin, end);
  }

  // Calls f(begin, end) for chunks of 0 … count-1 that no other thread has taken.
  template <typename F>
  void take(Counter& counter, int64_t count, int64_t chunk, F f) const {
    if (threads == 1) {
      if (count > 0) f(int64_t{0}, count);
      return;
    }
    for (;;) {
      const int64_t begin = counter.next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= count) return;
      f(begin, std::min(begin + chunk, count));
    }
  }
};

}  // namespace puna
