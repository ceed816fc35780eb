#include "exercises.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include <unistd.h>

#include "core/mapped_file.h"
#include "core/thread_pool.h"
#include "core/variants.h"
#include "core/worker.h"
#include "program_case.h"

namespace puna::replay {
namespace {

constexpr int kCallers = 3;
#if defined(__SANITIZE_THREAD__)
constexpr bool kIsWatchingThreads = true;
#else
constexpr bool kIsWatchingThreads = false;
#endif
constexpr int kThreads[] = {1, 2, 5, 16};

// Every round each thread adds what it sees of its neighbour, which is right only if all have met in between.
bool run_rounds(int threads) {
  constexpr int kRounds = 50;
  std::vector<int64_t> values(static_cast<size_t>(threads), 1), next(static_cast<size_t>(threads));
  std::vector<Counter> counters(kRounds);
  std::vector<int64_t> taken(static_cast<size_t>(threads));
  ThreadPool::instance().run(threads, [&](int thread, Barrier& barrier) {
    const size_t self = static_cast<size_t>(thread), neighbour = static_cast<size_t>((thread + 1) % threads);
    for (Counter& counter : counters) {
      next[self] = (values[self] + values[neighbour]) % 1000003;
      while (counter.next.fetch_add(1, std::memory_order_relaxed) < 100) ++taken[self];
      barrier.meet();
      values[self] = next[self];
      barrier.meet();
    }
  });
  int64_t wanted = 1, pieces = 0;
  for (int i = 0; i < kRounds; ++i) wanted = 2 * wanted % 1000003;
  for (const int64_t count : taken) pieces += count;
  for (const int64_t value : values) {
    if (value != wanted) return false;
  }
  return pieces == 100 * kRounds;
}

// f() from several threads at once; whether all of them say yes.
template <typename F>
bool all_callers(F f) {
  std::atomic<int> failures{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&] {
      try {
        if (!f()) ++failures;
      } catch (const std::exception& error) {
        std::printf("  %s\n", error.what());
        ++failures;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  return failures == 0;
}

bool refuses_threads(int threads) {
  try {
    ThreadPool::instance().run(threads, [](int, Barrier&) {});
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// A file of this many bytes, all of them 7, that is gone when this object is.
class TemporaryFile {
 public:
  explicit TemporaryFile(int64_t bytes) {
    const int file = mkstemp(path_);
    const std::vector<uint8_t> content(static_cast<size_t>(bytes), uint8_t{7});
    const bool is_written = file >= 0 && write(file, content.data(), content.size()) == bytes;
    if (file >= 0) close(file);
    if (!is_written) throw std::runtime_error(std::string("cannot write ") + path_);
  }
  ~TemporaryFile() { unlink(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const char* path() const { return path_; }

 private:
  char path_[32] = "/tmp/puna-replay-XXXXXX";
};

}  // namespace

bool exercise_pool() {
  bool is_good = refuses_threads(0) && refuses_threads(kMaxThreads + 1);
  for (const int threads : kThreads) is_good &= run_rounds(threads);
  return is_good & all_callers([] {
    bool is_right = true;
    for (const int threads : kThreads) is_right &= run_rounds(threads);
    return is_right;
  });
}

bool exercise_programs(const std::vector<Case>& cases) {
  const KernelTable& kernels = kernels_of(default_variant());
  return all_callers([&] {
    bool is_right = true;
    for (const Case& recorded : cases) {
      if (recorded.calls.empty()) is_right &= run_program(recorded, kernels, 2);
    }
    return is_right;
  });
}

bool exercise_mapped_file() {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const TemporaryFile file(3 * page);
  const MappedFile whole(file.path());
  const MappedFile other(file.path());
  const volatile uint8_t* data = whole.data();
  if (whole.size() != 3 * page || data[3 * page - 1] != 7 || whole.is_damaged()) return false;
  if (truncate(file.path(), page) != 0) return false;
  // The end reads as zeros in every thread, the beginning stays, and only who touched the end is damaged. To
  // ThreadSanitizer pages that are put in place of others are writes, so there one thread has to do.
  const auto is_gone = [&] { return data[2 * page + 5] == 0 && data[page] == 0; };
  const bool is_zero = kIsWatchingThreads ? is_gone() : all_callers(is_gone);
  return is_zero && data[page - 1] == 7 && whole.is_damaged() && !other.is_damaged();
}

}  // namespace puna::replay
