#include "thread_pool.h"

#include <csignal>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include <pthread.h>

#include "cpu_info.h"

namespace puna {
namespace {

std::atomic<bool> is_forked{false};

void note_fork() { is_forked.store(true, std::memory_order_relaxed); }

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

ThreadPool& ThreadPool::instance() {
  // Never destroyed: workers sleep in it until the process ends.
  static ThreadPool* pool = new ThreadPool;
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
  Patience patience = Patience::spin;
  for (uint32_t ticket = 0;; ++ticket) {
    wait_while_equal(worker.ticket, ticket, worker.sleepers, patience);
    patience = barrier_.patience();
    (*task_)(thread, barrier_);
    barrier_.meet();
  }
}

void ThreadPool::run(int threads, const std::function<void(int, Barrier&)>& task) {
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
  barrier_.prepare(threads, threads <= cpu_info().default_threads ? Patience::spin : Patience::yield);
  task_ = &task;
  for (int i = 0; i < threads - 1; ++i) {
    Worker& worker = *workers_[static_cast<size_t>(i)];
    worker.ticket.fetch_add(1, std::memory_order_seq_cst);
    wake_all(worker.ticket, worker.sleepers);
  }
  const FlushSubnormals flush;
  task(0, barrier_);
  barrier_.meet();
}

}  // namespace puna
