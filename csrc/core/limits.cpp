#include "limits.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "../quant/a8.h"
#include "cpu_info.h"
#include "memory.h"
#include "product.h"
#include "text.h"
#include "thread_pool.h"
#include "weights.h"

namespace puna {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// A sum of the first bytes of every cache line, so that the reads are not thrown away.
uint64_t read_lines(const uint8_t* data, int64_t bytes) {
  const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
  const int64_t count = bytes / 8;
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 64 <= count; i += 64) {
    for (int line = 0; line < 8; ++line) sums[line] += words[i + 8 * line];
  }
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  return total;
}

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
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);
  const Clock::time_point begin = Clock::now();
  bool is_first = true;
  do {
    double elapsed = 0;
    ThreadPool::instance().run(threads, [&](int thread, Barrier& barrier) {
      uint8_t* part = memory.data() + share * thread;
      if (is_first) {  // pages that nobody wrote to are all the same one
        for (int64_t i = 0; i < share; i += 4096) part[i] = 1;
      }
      barrier.meet();
      const Clock::time_point start = Clock::now();
      sums[static_cast<size_t>(thread) * 8] += read_lines(part, share);
      barrier.meet();
      if (thread == 0) elapsed = seconds_since(start);
    });
    is_first = false;
    best = std::max(best, static_cast<double>(bytes) / elapsed * 1e-9);
  } while (seconds_since(begin) < seconds);
  return best;
}

// Eight rows times a few panels that stay in the nearest caches.
double measure_products(const KernelTable& kernels, const char* format_name, double seconds, int threads) {
  constexpr int64_t kRows = 8, kCols = 256, kOutputs = 64;
  const Format& format = *find_format(format_name);
  const int64_t bytes = kOutputs * kCols / format.block_elements * format.block_bytes;
  const std::vector<uint8_t> stored(static_cast<size_t>(bytes));
  const auto matrix = pack_matrix(format, stored.data(), bytes, kOutputs, kCols, false, 1);
  MatmulArgs common = product_args(*matrix);
  common.ldx = kCols;
  common.m = kRows;
  common.ldo = kOutputs;
  const int64_t scratch_floats = kernels.matmul_scratch_floats(common) + 16;
  // Memory of each thread, a page apart from the others'.
  Memory scratch, a8, out;
  const int64_t scratch_bytes = (scratch_floats * 4 + 4095) / 4096 * 4096;
  const int64_t a8_bytes = (16 * a8_row_bytes(kCols) + 4095) / 4096 * 4096;
  const int64_t out_bytes = kRows * kOutputs * 4;
  scratch.reserve(scratch_bytes * threads);
  a8.reserve(a8_bytes * threads);
  out.reserve(out_bytes * threads);
  const std::vector<float> x(kRows * kCols, 1.0f);
  std::vector<double> rates(static_cast<size_t>(threads));
  ThreadPool::instance().run(threads, [&](int thread, Barrier& barrier) {
    MatmulArgs args = common;
    uint8_t* codes = a8.data() + a8_bytes * thread;
    float* floats = reinterpret_cast<float*>(scratch.data() + scratch_bytes * thread);
    kernels.quantize_a8(x.data(), kCols, 0, kRows, kCols, codes);
    args.x = x.data();
    args.a8 = codes;
    args.out = reinterpret_cast<float*>(out.data() + out_bytes * thread);
    barrier.meet();
    const Clock::time_point begin = Clock::now();
    do {
      constexpr int kRepeats = 100;
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kRepeats; ++i) {
        kernels.matmul(args, 0, matrix->panels(), floats);
      }
      const double rate = 2.0 * kRows * kCols * kOutputs * kRepeats / seconds_since(start) * 1e-9;
      rates[static_cast<size_t>(thread)] = std::max(rates[static_cast<size_t>(thread)], rate);
    } while (seconds_since(begin) < seconds);
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
  limits.f32_gflops = measure_products(kernels, "F32", seconds * 0.2, threads);
  limits.int8_gops = measure_products(kernels, "Q4_0", seconds * 0.2, threads);
  return limits;
}

}  // namespace puna
