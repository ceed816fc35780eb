// One run of a program's instructions through the threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "instruction.h"
#include "thread_pool.h"

namespace puna {

// An instruction of the program with all calls written out.
struct Placed {
  const Instruction* instruction;
  Frame frame;
};

// What an execution notes of an instruction: when it began and ended, and how long threads worked on it.
struct InstructionTimes {
  double begin = 0, end = 0;         // seconds
  std::atomic<int64_t> worked_ns{0};  // all threads together
};

// Each phase of each instruction is a stage. What is too little for two pieces is done at once by the thread that ended
// the stage before it: a row's norm, its rounding, its rotation are part of the hand-over from one product to the next.
class Execution final : public Stages {
 public:
  // `scratch`: scratch_floats for each thread. `times`: one entry per instruction, or null.
  Execution(const KernelTable& kernels, const Step& step, std::span<const Placed> timeline, float* scratch,
            int64_t scratch_floats, int threads, InstructionTimes* times);

  int64_t next(int thread) override;
  Ahead ahead() const override;
  void piece(int thread, int64_t index) override;

 private:
  bool advance();
  Division divide(const Placed& placed, int phase) const;
  void run_part(int thread, const Part& part);

  const KernelTable& kernels_;
  const Step& step_;
  std::span<const Placed> timeline_;
  float* scratch_;
  int64_t scratch_floats_;
  int threads_;
  InstructionTimes* times_;
  // The stage at hand.
  size_t position_ = 0;
  int phase_ = -1;
  Division division_;
};

}  // namespace puna
