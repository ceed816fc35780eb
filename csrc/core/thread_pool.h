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
inline constexpr int kMaxGroups = 64;
inline constexpr int64_t kMaxPieces = (int64_t{1} << 20) - 1;

// Memory that threads without a piece may ask for meanwhile: `bytes` from begin + stride · i on, for the i-th of them.
// They only ask for it: it need not be there any more.
struct Ahead {
  const uint8_t* begin = nullptr;
  int64_t stride = 0, bytes = 0;
};

// What a run does, one stage after the other. A stage is a number of pieces that threads take one by one; it ends when
// all of them are done, whoever did them. A thread that has no piece keeps nobody waiting: it may lose its core, come
// back after the run, and finds nothing that is left of it. Nothing may throw.
class Stages {
 public:
  // Begins the next stage, in the one thread that ended the last one (the caller's, for the first). Returns its pieces,
  // at most kMaxPieces; 0 ends the run. What is not worth a hand-over may be done here.
  virtual int64_t next(int thread) = 0;
  // What pieces of later stages will read: the thread that ends a stage takes the first of them, others those after it.
  virtual Ahead ahead() const { return {}; }
  // Does one piece. `thread` is 0 … threads-1, of this run; no two pieces of one thread overlap.
  virtual void piece(int thread, int64_t index) = 0;

 protected:
  ~Stages() = default;
};

// Where threads meet that run at the same time. Reusable; all of them must call `meet` equally often.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(static_cast<uint32_t>(threads)) {}

  void meet() {
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_seq_cst);
      wake_all(round_, sleepers_);
    } else {
      wait_while_equal(round_, round, sleepers_, Patience::spin);
    }
  }

 private:
  const uint32_t threads_;
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

// One pool per group of cores; group 0 is the one that everything uses unless told otherwise, the others are for copies
// of a model that run at the same time. Workers are started when a run first needs them, and sleep between runs.
class ThreadPool {
 public:
  // Throws std::invalid_argument for a group outside 0 … kMaxGroups-1.
  static ThreadPool& instance(int group = 0);

  // Goes through all stages with as many threads, the calling one among them; subnormals are flushed meanwhile. One run
  // at a time: another caller waits. Throws std::invalid_argument for a number of threads outside 1 … kMaxThreads, and
  // std::runtime_error in a process that was forked after the pool had been used, or when threads cannot be started.
  void run(int threads, Stages& stages);
  // Calls task(i) for i = 0 … threads-1, in as many threads: the calls may wait for each other. As `run` otherwise.
  void run_together(int threads, const std::function<void(int)>& task);

 private:
  struct Worker {
    alignas(64) std::atomic<uint32_t> ticket{0};  // counts the runs given to this worker
    std::atomic<uint32_t> sleepers{0};
  };

  ThreadPool();
  void start_workers(int count);
  void work(int thread, Worker& worker);
  void publish(int threads, int64_t remaining);
  void take_part(int thread);
  void look_ahead(int thread, int threads, uint32_t events) const;
  void advance(int thread);

  std::mutex run_mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;

  // The stage at hand: threads of the run (0: there is none), and pieces that nobody has taken yet. A piece is taken by
  // exchanging this word, so whoever succeeds holds a piece of the stage that is current at that moment, and until the
  // piece is done neither the stage nor anything of the run goes away.
  alignas(64) std::atomic<uint32_t> word_{0};
  std::atomic<uint32_t> events_{0};  // counts changes of the word that are worth waking for
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<Patience> patience_{Patience::spin};
  std::atomic<const uint8_t*> ahead_{nullptr};
  std::atomic<int64_t> ahead_stride_{0}, ahead_bytes_{0};
  // For holders of a piece only.
  Stages* stages_ = nullptr;
  int threads_ = 0;
  int64_t pieces_ = 0;
  alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace puna
