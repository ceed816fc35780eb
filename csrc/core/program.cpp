#include "program.h"

#include <algorithm>
#include <stdexcept>

#include "text.h"

namespace puna {
namespace {

constexpr size_t kMaxDeclarations = size_t{1} << 20;
constexpr int64_t kMaxRowBytes = int64_t{1} << 36;

void check_count(size_t count, const char* what) {
  if (count >= kMaxDeclarations) invalid("a program has at most ", kMaxDeclarations, " ", what);
}

}  // namespace

void Program::require_open() const {
  if (is_finished_) throw std::runtime_error("the program is finished; nothing can be added to it");
}

int64_t Program::buffer(const std::string& rows, int64_t row_bytes) {
  const std::lock_guard lock(mutex_);
  require_open();
  check_count(declarations_.buffers.size(), "buffers");
  if (row_bytes < 4 || row_bytes > kMaxRowBytes || row_bytes % 4 != 0) {
    invalid("row_bytes of a buffer must be a multiple of 4 from 4 to 2**36, got ", row_bytes);
  }
  for (const Rows kind : {Rows::T, Rows::B, Rows::R}) {
    if (rows != rows_name(kind)) continue;
    declarations_.buffers.push_back({kind, row_bytes});
    return static_cast<int64_t>(declarations_.buffers.size()) - 1;
  }
  invalid("rows of a buffer must be 'T', 'B' or 'R', got '", rows, "'");
}

int64_t Program::weight(std::shared_ptr<const PackedMatrix> matrix) {
  const std::lock_guard lock(mutex_);
  require_open();
  check_count(declarations_.weights.size(), "weights");
  declarations_.weights.push_back({std::move(matrix), {}});
  return static_cast<int64_t>(declarations_.weights.size()) - 1;
}

int64_t Program::weight(std::vector<float> vector) {
  const std::lock_guard lock(mutex_);
  require_open();
  check_count(declarations_.weights.size(), "weights");
  if (vector.empty()) invalid("a weight vector must not be empty");
  declarations_.weights.push_back({nullptr, std::move(vector)});
  return static_cast<int64_t>(declarations_.weights.size()) - 1;
}

int64_t Program::rope(const std::string& kind, const Fields& parameters) {
  const std::lock_guard lock(mutex_);
  require_open();
  check_count(declarations_.ropes.size(), "rope specifications");
  declarations_.ropes.emplace_back(kind, parameters);
  return static_cast<int64_t>(declarations_.ropes.size()) - 1;
}

void Program::adapters(std::shared_ptr<const AdapterSlots> slots) {
  const std::lock_guard lock(mutex_);
  require_open();
  if (declarations_.adapters != nullptr) invalid("the program has adapter slots already");
  declarations_.adapters = std::move(slots);
}

void Program::begin_sub(const std::string& name) {
  const std::lock_guard lock(mutex_);
  require_open();
  if (open_sub_ != nullptr) throw std::runtime_error("subprogram '" + open_sub_->name + "' is still open");
  check_count(subs_.size(), "subprograms");
  open_sub_ = std::make_unique<Function>();
  open_sub_->name = name;
}

int64_t Program::end_sub() {
  const std::lock_guard lock(mutex_);
  require_open();
  if (open_sub_ == nullptr) throw std::runtime_error("no subprogram is open");
  subs_.push_back(std::move(open_sub_));
  return static_cast<int64_t>(subs_.size()) - 1;
}

int64_t Program::emit(const std::string& op, const Fields& fields) {
  const std::lock_guard lock(mutex_);
  require_open();
  Function& function = open_sub_ != nullptr ? *open_sub_ : main_;
  check_count(function.entries.size(), "instructions");
  FieldReader reader(op, fields);
  Entry entry;
  entry.op = op;
  entry.name = reader.optional_text("name", op);
  if (op == "call") {
    if (open_sub_ != nullptr) invalid("call: a subprogram cannot call another one");
    entry.sub = reader.integer("sub", 0, static_cast<int64_t>(subs_.size()) - 1);
    entry.frame.weight_base = reader.integer("weight_base", 0, kMaxIndex);
    entry.frame.layer = reader.integer("layer", 0, kMaxIndex);
  } else {
    entry.instruction = make_instruction(op, reader);
  }
  reader.finish();
  function.entries.push_back(std::move(entry));
  return static_cast<int64_t>(function.entries.size()) - 1;
}

void Program::place(const Function& function, const Frame& frame) {
  for (size_t i = 0; i < function.entries.size(); ++i) {
    const Entry& entry = function.entries[i];
    if (entry.instruction == nullptr) {
      place(*subs_[static_cast<size_t>(entry.sub)], entry.frame);
      continue;
    }
    try {
      entry.instruction->check(declarations_, frame, needs_);
    } catch (const std::invalid_argument& error) {
      invalid("instruction ", i, " of '", function.name, "' (", entry.op, "): ", error.what());
    }
    check_count(timeline_.size(), "instructions");
    timeline_.push_back({entry.instruction.get(), frame});
    entries_.push_back(&entry);
  }
}

void Program::finish() {
  const std::lock_guard lock(mutex_);
  require_open();
  if (open_sub_ != nullptr) invalid("subprogram '", open_sub_->name, "' is still open");
  timeline_.clear();
  entries_.clear();
  needs_ = {};
  place(main_, {});
  for (size_t i = 0; i < needs_.outputs.size(); ++i) {
    if (!needs_.outputs[i].is_used) invalid("nothing writes output ", i);
  }
  is_finished_ = true;
}

void Program::execute(const Inputs& inputs, const std::vector<ArrayView>& outputs, int threads) {
  const std::lock_guard lock(mutex_);
  if (!is_finished_) throw std::runtime_error("the program is not finished");
  step_.bind(declarations_, needs_, inputs, outputs, threads);

  int64_t scratch_floats = 0;
  for (const Placed& placed : timeline_) {
    const int64_t floats = placed.instruction->scratch_floats(step_, placed.frame, kernels_);
    scratch_floats = std::max(scratch_floats, (floats + 15) / 16 * 16);
  }
  scratch_.reserve(scratch_floats * threads * static_cast<int64_t>(sizeof(float)));
  times_ = is_traced_ ? std::make_unique<InstructionTimes[]>(timeline_.size()) : nullptr;
  Execution execution(kernels_, step_, timeline_, reinterpret_cast<float*>(scratch_.data()), scratch_floats, threads,
                      times_.get());
  ThreadPool::instance(group_).run(threads, execution);
  if (is_traced_) note_trace(threads);
  step_.release_adapters();
}

void Program::note_trace(int threads) {
  records_.clear();
  for (size_t i = 0; i < timeline_.size(); ++i) {
    TraceRecord& record = records_.emplace_back();
    record.op = entries_[i]->op;
    record.name = entries_[i]->name;
    record.layer = timeline_[i].frame.layer;
    record.seconds = times_[i].end - times_[i].begin;
    const double worked = static_cast<double>(times_[i].worked_ns.load(std::memory_order_relaxed)) * 1e-9;
    record.waited = std::max(0.0, record.seconds * threads - worked);
    record.cost = timeline_[i].instruction->cost(step_, timeline_[i].frame);
  }
}

void Program::trace(bool is_on) {
  const std::lock_guard lock(mutex_);
  is_traced_ = is_on;
  if (!is_on) records_.clear();
}

std::vector<TraceRecord> Program::trace_records() {
  const std::lock_guard lock(mutex_);
  return records_;
}

}  // namespace puna
