#include "limits.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <vector>

#include "cpu_info.h"
#include "memory.h"
#include "text.h"
#include "thread_pool.h"

namespace puna {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// A sum of the first bytes of every cache line, so that the reads are not thrown away. `Ahead`: bytes by which lines
// are asked for before they are read, 0: not at all. Some processors' own foresight is better, that of others is not.
template <int Ahead>
uint64_t read_lines(const uint8_t* data, int64_t bytes) {
  const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
  const int64_t count = bytes / 8;
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 64 <= count; i += 64) {
    for (int line = 0; line < 8; ++line) {
      if constexpr (Ahead != 0) __builtin_prefetch(words + i + 8 * line + Ahead / 8);
      sums[line] += words[i + 8 * line];
    }
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

constexpr uint64_t (*kReaders[])(const uint8_t*, int64_t) = {read_lines<0>, read_lines<1024>, read_lines<4096>};

// The best of repeated passes over more memory than the caches hold.
double measure_read(double seconds, int threads) {
  int64_t bytes = int64_t{512} << 20;
  const CpuInfo& info = cpu_info();
  for (const auto& limit : {info.memory_limit, info.memory_total}) {
    if (limit) bytes = std::min(bytes, *limit / 8);
  }
  bytes = std::max(bytes, int64_t{16} << 20) / (4096 * threads) * (4096 * threads);
  Memory memory;
  memory.reserve(bytes);
  const int64_t share = bytes / threads;
  double best = 0;
  struct alignas(64) Part {
    Clock::time_point begin, end;
    uint64_t sum = 0;
  };
  std::vector<Part> parts(static_cast<size_t>(threads));
  const Clock::time_point begin = Clock::now();
  bool is_first = true;
  size_t pass = 0;
  do {
    Barrier barrier(threads);
    const auto reader = kReaders[pass++ % std::size(kReaders)];
    ThreadPool::instance().run_together(threads, [&](int thread) {
      uint8_t* data = memory.data() + share * thread;
      Part& part = parts[static_cast<size_t>(thread)];
      if (is_first) {  // pages that nobody wrote to are all the same one
        for (int64_t i = 0; i < share; i += 4096) data[i] = 1;
      }
      barrier.meet();
      part.begin = Clock::now();
      part.sum += reader(data, share);
      part.end = Clock::now();
    });
    is_first = false;
    Clock::time_point start = parts[0].begin, end = parts[0].end;
    for (const Part& part : parts) {
      start = std::min(start, part.begin);
      end = std::max(end, part.end);
    }
    const double elapsed = std::chrono::duration<double>(end - start).count();
    best = std::max(best, static_cast<double>(bytes) / elapsed * 1e-9);
  } while (seconds_since(begin) < seconds);
  return best;
}

// The best of repeated short runs in every thread, added up.
double measure_arithmetic(int64_t (*peak)(int64_t, float*), double seconds, int threads) {
  constexpr int64_t kRepeats = 20000;  // some hundred microseconds
  std::vector<double> rates(static_cast<size_t>(threads));
  Barrier barrier(threads);
  ThreadPool::instance().run_together(threads, [&](int thread) {
    alignas(64) float out[16];
    double best = 0;
    barrier.meet();
    const Clock::time_point begin = Clock::now();
    do {
      const Clock::time_point start = Clock::now();
      const int64_t operations = peak(kRepeats, out);
      best = std::max(best, static_cast<double>(operations) / seconds_since(start) * 1e-9);
    } while (seconds_since(begin) < seconds);
    rates[static_cast<size_t>(thread)] = best;
  });
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace

Limits measure_limits(const KernelTable& kernels, double seconds, int threads) {
  if (!(seconds >= 0.01 && seconds <= 60)) invalid("seconds must be 0.01 to 60, got ", seconds);
  Limits limits;
  limits.read_gbps = measure_read(seconds * 0.6, threads);
  limits.f32_gflops = measure_arithmetic(kernels.float_peak, seconds * 0.2, threads);
  limits.int8_gops = measure_arithmetic(kernels.int8_peak, seconds * 0.2, threads);
  return limits;
}

}  // namespace puna
