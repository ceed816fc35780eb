// A program: declarations, subprograms, instructions; checked as a whole, then executed any number of times.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "execution.h"
#include "thread_pool.h"

namespace puna {

// One instruction of the last traced execution.
struct TraceRecord {
  std::string op;
  std::string name;
  int64_t layer = 0;
  double seconds = 0;
  double waited = 0;  // of all threads together, without work
  Cost cost;
};

// Every method throws std::invalid_argument for what does not fit, and std::runtime_error when called too early or too
// late. Methods may be called from several threads; one execution runs at a time.
class Program {
 public:
  // Its threads are those of the group's pool: programs of different groups run at the same time.
  explicit Program(const KernelTable& kernels, int group = 0) : kernels_(kernels), group_(group) {
    ThreadPool::instance(group);  // refuses what is no group
  }

  int64_t buffer(const std::string& rows, int64_t row_bytes);
  int64_t weight(std::shared_ptr<const PackedMatrix> matrix);
  int64_t weight(std::vector<float> vector);
  int64_t rope(const std::string& kind, const Fields& parameters);
  void adapters(std::shared_ptr<const AdapterSlots> slots);

  // Instructions between the two belong to the subprogram; `call` runs it. Subprograms do not call.
  void begin_sub(const std::string& name);
  int64_t end_sub();
  // Its position among the instructions of the (sub)program.
  int64_t emit(const std::string& op, const Fields& fields);

  // Checks everything, for every call; nothing can be added afterwards.
  void finish();

  void execute(const Inputs& inputs, const std::vector<ArrayView>& outputs, int threads);

  void trace(bool is_on);
  // One record per instruction of the last execution with tracing on.
  std::vector<TraceRecord> trace_records();

  const char* variant() const { return kernels_.name; }

 private:
  struct Entry {
    std::string op, name;
    std::unique_ptr<const Instruction> instruction;  // null: a call
    int64_t sub = 0;
    Frame frame;
  };
  struct Function {
    std::string name;
    std::vector<Entry> entries;
  };

  void require_open() const;
  void place(const Function& function, const Frame& frame);
  void note_trace(int threads);

  const KernelTable& kernels_;
  const int group_;
  std::mutex mutex_;
  Declarations declarations_;
  std::vector<std::unique_ptr<Function>> subs_;
  std::unique_ptr<Function> open_sub_;
  Function main_{"main", {}};
  bool is_finished_ = false;

  std::vector<Placed> timeline_;
  std::vector<const Entry*> entries_;  // of the timeline
  Needs needs_;
  Step step_;
  Memory scratch_;
  std::unique_ptr<InstructionTimes[]> times_;
  bool is_traced_ = false;
  std::vector<TraceRecord> records_;
};

}  // namespace puna
