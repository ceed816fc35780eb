// The worker threads of the process, shared by everything that computes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "wait.h"

namespace puna {

inline constexpr int kMaxThreads = 1024;

// Where the threads of a run meet. Reusable; every thread of the run must call `meet` equally often. It must outlive
// the run: the last thread to arrive still touches it after the others have left.
class Barrier {
 public:
  // For the next run, once all threads have arrived in the last one's final `meet`.
  void prepare(int threads, Patience patience) {
    threads_ = static_cast<uint32_t>(threads);
    patience_ = patience;
  }
  Patience patience() const { return patience_; }

  void meet() {
    // Read before arriving: afterwards the run may be over and the next one be prepared.
    const uint32_t threads = threads_;
    const Patience patience = patience_;
    if (threads == 1) return;
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_seq_cst);
      wake_all(round_, sleepers_);
    } else {
      wait_while_equal(round_, round, sleepers_, patience);
    }
  }

 private:
  uint32_t threads_ = 1;
  Patience patience_ = Patience::spin;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  std::atomic<uint32_t> sleepers_{0};
};

// Flushes subnormal results and operands to zero in this thread while it lives: they cost a hundred cycles each, and
// the mode must be the same in every thread, or bits would depend on who computes what. Rounding is to nearest.
class FlushSubnormals {
 public:
  FlushSubnormals();
  ~FlushSubnormals();
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  uint64_t saved_;
};

// One pool per process. Workers are started when a run first needs them, and sleep between runs.
class ThreadPool {
 public:
  static ThreadPool& instance();

  // Calls task(thread, barrier) for thread = 0 … threads-1 at the same time, 0 in the calling thread, and returns when
  // all are done; subnormals are flushed meanwhile. One run at a time: another caller waits. The task must not throw.
  // Throws std::invalid_argument for a number of threads outside 1 … kMaxThreads, and std::runtime_error in a process
  // that was forked after the pool had been used, or when threads cannot be started.
  void run(int threads, const std::function<void(int, Barrier&)>& task);

 private:
  struct Worker {
    alignas(64) std::atomic<uint32_t> ticket{0};  // counts the runs given to this worker
    std::atomic<uint32_t> sleepers{0};
  };

  ThreadPool();
  void start_workers(int count);
  void work(int thread, Worker& worker);

  std::mutex run_mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
  const std::function<void(int, Barrier&)>* task_ = nullptr;
  Barrier barrier_;
};

}  // namespace puna
