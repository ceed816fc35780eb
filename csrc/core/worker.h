// What a thread works with, and how work is divided among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernel_table.h"

namespace puna {

// One thread's view of a run.
struct Worker {
  const KernelTable& kernels;
  float* scratch;  // of this thread, as much as the instructions of the run asked for
};

// Work that can be divided between any two of its units, which may be done in any order and by any thread.
struct Work {
  int64_t units = 0;
  // What one piece may hold at least and at most: less is not worth a hand-over, more would leave the cache.
  int64_t least = 1;
  int64_t most = std::numeric_limits<int64_t>::max();
};

struct Range {
  int64_t begin, end;
};

// The pieces of work for some threads, in the order in which they are taken. They shrink as the work comes to its end: a
// first half in one piece for each thread, half of the rest, and so on. Long pieces are long streams of memory, short
// ones let all threads end at about the same time.
class Division {
 public:
  Division() = default;
  Division(const Work& work, int threads);

  int64_t pieces() const { return pieces_; }
  Range piece(int64_t index) const;

 private:
  // Calls f(rest, chunk, count): `count` pieces of `chunk` units, the last one shorter, for `rest` units that are left.
  template <typename F>
  void each_level(F f) const;

  Work work_;
  int64_t threads_ = 1, pieces_ = 0;
};

}  // namespace puna
