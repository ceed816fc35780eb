#include "execution.h"

#include <chrono>

namespace puna {
namespace {

// What one thread is taken to reach, and how long a piece should take at least: a hand-over costs some 0.3 microseconds.
constexpr int64_t kBytesPerMicrosecond = 8000, kFlopsPerMicrosecond = 50000;
constexpr int64_t kPieceMicroseconds = 2;

// How far threads without work look for weights that will be read: what one core reads from memory while another one
// does a norm or a head's rotation.
constexpr size_t kLookAhead = 5;  // instructions
constexpr int64_t kAheadBytes = 32768;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The fewest units that are worth a piece.
int64_t fewest_units(int64_t units, const Cost& cost) {
  const int64_t pieces = std::max(cost.bytes / (kBytesPerMicrosecond * kPieceMicroseconds),
                                  cost.flops / (kFlopsPerMicrosecond * kPieceMicroseconds));
  return pieces < 2 ? units : (units + pieces - 1) / pieces;
}

}  // namespace

Execution::Execution(const KernelTable& kernels, const Step& step, std::span<const Placed> timeline, float* scratch,
                     int64_t scratch_floats, int threads, InstructionTimes* times)
    : kernels_(kernels), step_(step), timeline_(timeline), scratch_(scratch), scratch_floats_(scratch_floats),
      threads_(threads), times_(times) {}

// To the next phase, or the first one of the next instruction; false after the last.
bool Execution::advance() {
  if (timeline_.empty()) return false;
  if (phase_ >= 0 && phase_ + 1 >= timeline_[position_].instruction->phases(step_)) {
    if (times_ != nullptr) times_[position_].end = now_seconds();
    if (++position_ == timeline_.size()) return false;
    phase_ = -1;
  }
  if (++phase_ == 0 && times_ != nullptr) {
    times_[position_].begin = position_ == 0 ? now_seconds() : times_[position_ - 1].end;
  }
  return true;
}

Division Execution::divide(const Placed& placed, int phase) const {
  Work work = placed.instruction->work(step_, placed.frame, phase);
  if (threads_ > 1) work.least = fewest_units(work.units, placed.instruction->cost(step_, placed.frame));
  return Division(work, threads_);
}

int64_t Execution::next(int thread) {
  while (advance()) {
    division_ = divide(timeline_[position_], phase_);
    if (division_.pieces() > 1) return division_.pieces();
    if (division_.pieces() == 1) piece(thread, 0);
  }
  return 0;
}

Ahead Execution::ahead() const {
  const size_t end = std::min(timeline_.size(), position_ + 1 + kLookAhead);
  for (size_t i = position_ + 1; i < end; ++i) {
    const Placed& placed = timeline_[i];
    if (placed.instruction->stream(step_, placed.frame, 0) == nullptr) continue;
    const Division division = divide(placed, 0);
    if (division.pieces() < 2) return {};
    const auto begin_of = [&](int64_t piece) {
      return placed.instruction->stream(step_, placed.frame, division.piece(piece).begin);
    };
    const uint8_t* first = begin_of(1);
    return {first, division.pieces() > 2 ? begin_of(2) - first : 0, kAheadBytes};
  }
  return {};
}

void Execution::piece(int thread, int64_t index) {
  const Range range = division_.piece(index);
  run_part(thread, {phase_, range.begin, range.end});
}

void Execution::run_part(int thread, const Part& part) {
  const Placed& placed = timeline_[position_];
  const Worker worker{kernels_, scratch_ + thread * scratch_floats_};
  if (times_ == nullptr) {
    placed.instruction->run(step_, placed.frame, worker, part);
    return;
  }
  const double begin = now_seconds();
  placed.instruction->run(step_, placed.frame, worker, part);
  times_[position_].worked_ns.fetch_add(static_cast<int64_t>((now_seconds() - begin) * 1e9), std::memory_order_relaxed);
}

}  // namespace puna
