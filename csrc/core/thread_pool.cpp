#include "thread_pool.h"

#include <array>
#include <csignal>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include <pthread.h>

#include "cpu_info.h"

namespace puna {
namespace {

std::atomic<bool> is_forked{false};

void note_fork() { is_forked.store(true, std::memory_order_relaxed); }

// The fields of ThreadPool::word_.
constexpr int kPieceBits = 20;
constexpr uint32_t word_of(int threads, int64_t remaining) {
  return static_cast<uint32_t>(threads) << kPieceBits | static_cast<uint32_t>(remaining);
}
constexpr int threads_of(uint32_t word) { return static_cast<int>(word >> kPieceBits); }
constexpr int64_t remaining_of(uint32_t word) { return word & ((uint32_t{1} << kPieceBits) - 1); }
static_assert(kMaxPieces < int64_t{1} << kPieceBits && kMaxThreads < 1 << (32 - kPieceBits));

#if defined(__x86_64__)
// Exceptions masked, round to nearest, flush to zero (bit 15), denormals are zero (bit 6).
constexpr uint32_t kMode = 0x1f80u | 0x8000u | 0x0040u;
uint64_t read_mode() { return __builtin_ia32_stmxcsr(); }
void write_mode(uint64_t mode) { __builtin_ia32_ldmxcsr(static_cast<uint32_t>(mode)); }
#else
constexpr uint64_t kMode = uint64_t{1} << 24;  // FZ; no traps, round to nearest
uint64_t read_mode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void write_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

}  // namespace

FlushSubnormals::FlushSubnormals() : saved_(read_mode()) { write_mode(kMode); }
FlushSubnormals::~FlushSubnormals() { write_mode(saved_); }

ThreadPool::ThreadPool() { pthread_atfork(nullptr, nullptr, note_fork); }

ThreadPool& ThreadPool::instance(int group) {
  if (group < 0 || group >= kMaxGroups) {
    throw std::invalid_argument("group must be 0 to " + std::to_string(kMaxGroups - 1) + ", got " +
                                std::to_string(group));
  }
  // Never destroyed: workers sleep in them until the process ends.
  static std::mutex& mutex = *new std::mutex;
  static std::array<ThreadPool*, kMaxGroups> pools{};
  const std::lock_guard lock(mutex);
  ThreadPool*& pool = pools[static_cast<size_t>(group)];
  if (pool == nullptr) pool = new ThreadPool;
  return *pool;
}

void ThreadPool::start_workers(int count) {
  // Python's signals belong to its main thread; faults must reach the thread that made them.
  sigset_t blocked, previous;
  sigfillset(&blocked);
  for (const int signal : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&blocked, signal);
  pthread_sigmask(SIG_SETMASK, &blocked, &previous);
  try {
    while (static_cast<int>(workers_.size()) < count) {
      const int thread = static_cast<int>(workers_.size()) + 1;
      workers_.push_back(std::make_unique<Worker>());
      try {
        std::thread(&ThreadPool::work, this, thread, std::ref(*workers_.back())).detach();
      } catch (...) {
        workers_.pop_back();
        throw;
      }
    }
  } catch (const std::system_error& error) {
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    throw std::runtime_error("cannot start " + std::to_string(count) + " worker threads: " + error.what());
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

void ThreadPool::work(int thread, Worker& worker) {
  pthread_setname_np(pthread_self(), ("puna-" + std::to_string(thread)).c_str());
  const FlushSubnormals flush;
  for (uint32_t ticket = 0;;) {
    wait_while_equal(worker.ticket, ticket, worker.sleepers, patience_.load(std::memory_order_relaxed));
    ticket = worker.ticket.load(std::memory_order_acquire);
    take_part(thread);
  }
}

void ThreadPool::publish(int threads, int64_t remaining) {
  word_.store(word_of(threads, remaining), std::memory_order_release);
  events_.fetch_add(1, std::memory_order_seq_cst);
  wake_all(events_, sleepers_);
}

void ThreadPool::take_part(int thread) {
  for (;;) {
    const uint32_t events = events_.load(std::memory_order_acquire);  // before the word: what comes after it wakes
    uint32_t word = word_.load(std::memory_order_acquire);
    if (thread >= threads_of(word)) return;
    const int64_t remaining = remaining_of(word);
    if (remaining == 0) {
      look_ahead(thread, threads_of(word), events);
      wait_while_equal(events_, events, sleepers_, patience_.load(std::memory_order_relaxed));
      continue;
    }
    if (!word_.compare_exchange_weak(word, word - 1, std::memory_order_acq_rel, std::memory_order_relaxed)) continue;
    const int64_t pieces = pieces_;
    stages_->piece(thread, pieces - remaining);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) advance(thread);
  }
}

// Lines of what comes next into the second-level cache, until there is work. The three values may be of different
// stages, and the memory of a run that is over: asking for an address never faults.
void ThreadPool::look_ahead(int thread, int threads, uint32_t events) const {
  constexpr int64_t kLine = 64, kLinesPerLook = 8;
  if (threads < 2) return;
  const uint8_t* begin = ahead_.load(std::memory_order_relaxed);
  if (begin == nullptr) return;
  begin += thread % (threads - 1) * ahead_stride_.load(std::memory_order_relaxed);
  const int64_t bytes = ahead_bytes_.load(std::memory_order_relaxed);
  for (int64_t at = 0; at < bytes && events_.load(std::memory_order_relaxed) == events; at += kLine * kLinesPerLook) {
    for (int64_t line = 0; line < kLinesPerLook; ++line) __builtin_prefetch(begin + at + kLine * line, 0, 2);
  }
}

void ThreadPool::advance(int thread) {
  for (;;) {
    const int64_t pieces = stages_->next(thread);
    if (pieces == 0) {
      publish(0, 0);
      return;
    }
    const Ahead ahead = stages_->ahead();
    ahead_.store(ahead.begin, std::memory_order_relaxed);
    ahead_stride_.store(ahead.stride, std::memory_order_relaxed);
    ahead_bytes_.store(ahead.bytes, std::memory_order_relaxed);
    pieces_ = pieces;
    done_.store(0, std::memory_order_relaxed);
    publish(threads_, pieces - 1);  // the first one is this thread's
    stages_->piece(thread, 0);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 != pieces) return;
  }
}

void ThreadPool::run(int threads, Stages& stages) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("threads must be 1 to " + std::to_string(kMaxThreads) + ", got " +
                                std::to_string(threads));
  }
  if (is_forked.load(std::memory_order_relaxed)) {
    throw std::runtime_error(
        "this process was forked from one that had used Puna's threads, which a fork does not copy; start it with "
        "spawn, or load the model after the fork");
  }
  const std::lock_guard lock(run_mutex_);
  start_workers(threads - 1);
  patience_.store(threads <= cpu_info().default_threads ? Patience::spin : Patience::yield, std::memory_order_relaxed);
  stages_ = &stages;
  threads_ = threads;
  publish(threads, 0);  // before the tickets: who comes early must see that there is a run
  for (int i = 0; i < threads - 1; ++i) {
    Worker& worker = *workers_[static_cast<size_t>(i)];
    worker.ticket.fetch_add(1, std::memory_order_seq_cst);
    wake_all(worker.ticket, worker.sleepers);
  }
  const FlushSubnormals flush;
  advance(0);
  take_part(0);
}

void ThreadPool::run_together(int threads, const std::function<void(int)>& task) {
  class Together final : public Stages {
   public:
    Together(int threads, const std::function<void(int)>& task) : pieces_(threads), task_(task) {}
    int64_t next(int) override { return std::exchange(pieces_, 0); }
    void piece(int, int64_t index) override { task_(static_cast<int>(index)); }

   private:
    int64_t pieces_;
    const std::function<void(int)>& task_;
  };
  Together stages(threads, task);
  run(threads, stages);
}

}  // namespace puna
