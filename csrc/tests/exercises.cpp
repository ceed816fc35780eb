#include "exercises.h"

#include <algorithm>
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

// Stages of 0 to 40 pieces, each of which adds what the stage before it left of two others: right only if a stage begins
// when all pieces of the one before are done, and each is done once.
class Rounds final : public Stages {
 public:
  static constexpr int64_t kRounds = 200, kPieces = 41;

  int64_t next(int) override {
    std::swap(values_, next_);
    next_ = values_;
    return ++round_ > kRounds ? 0 : std::max<int64_t>(1, round_ % kPieces);
  }

  void piece(int, int64_t index) override {
    const size_t self = static_cast<size_t>(index), other = static_cast<size_t>((index + round_) % kPieces);
    next_[self] = (2 * values_[self] + values_[other] + round_) % 1000003;
  }

  const std::vector<int64_t>& values() const { return values_; }

 private:
  int64_t round_ = 0;
  std::vector<int64_t> values_ = std::vector<int64_t>(kPieces, 1), next_ = values_;
};

bool run_rounds(int threads) {
  Rounds together, alone;
  ThreadPool::instance().run(threads, together);
  while (const int64_t pieces = alone.next(0)) {
    for (int64_t piece = 0; piece < pieces; ++piece) alone.piece(0, piece);
  }
  return together.values() == alone.values();
}

// Every round each thread adds what it sees of its neighbour, which is right only if all have met in between.
bool meet_in_rounds(int threads) {
  constexpr int kRounds = 50;
  std::vector<int64_t> values(static_cast<size_t>(threads), 1), next(static_cast<size_t>(threads));
  Barrier barrier(threads);
  ThreadPool::instance().run_together(threads, [&](int thread) {
    const size_t self = static_cast<size_t>(thread), neighbour = static_cast<size_t>((thread + 1) % threads);
    for (int round = 0; round < kRounds; ++round) {
      next[self] = (values[self] + values[neighbour]) % 1000003;
      barrier.meet();
      values[self] = next[self];
      barrier.meet();
    }
  });
  int64_t wanted = 1;
  for (int i = 0; i < kRounds; ++i) wanted = 2 * wanted % 1000003;
  return std::all_of(values.begin(), values.end(), [&](int64_t value) { return value == wanted; });
}

// Whether pieces cover the work once, in order, within their limits.
bool divides(const Work& work, int threads) {
  const Division division(work, threads);
  int64_t end = 0;
  for (int64_t i = 0; i < division.pieces(); ++i) {
    const Range piece = division.piece(i);
    const bool is_last = i + 1 == division.pieces();
    if (piece.begin != end || piece.end <= piece.begin) return false;
    if (threads > 1 && piece.end - piece.begin > std::max(work.most, work.least)) return false;
    if (!is_last && piece.end - piece.begin < std::min(work.least, work.most)) return false;
    end = piece.end;
  }
  return end == work.units;
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
    ThreadPool::instance().run_together(threads, [](int) {});
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
  for (const int threads : kThreads) is_good &= meet_in_rounds(threads);
  return is_good & all_callers([] {
    bool is_right = true;
    for (const int threads : kThreads) is_right &= run_rounds(threads);
    return is_right;
  });
}

bool exercise_division() {
  bool is_good = true;
  for (const int64_t units : {0, 1, 2, 3, 7, 31, 60, 68, 192, 1000, 8016, 123457}) {
    for (const int64_t least : {1, 2, 5, 300}) {
      for (const int64_t most : {1, 16, 1000000}) {
        for (const int threads : kThreads) is_good &= divides({units, least, most}, threads);
      }
    }
  }
  return is_good;
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
