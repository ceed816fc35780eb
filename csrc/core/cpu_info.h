// How much of the machine this process may use.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace puna {

struct CpuInfo {
  std::vector<int> affinity;             // logical cores that this process may run on
  int physical_cores = 1;                // among them, counting hardware threads of one core once
  std::optional<double> cpu_quota;       // cores' worth of time, the tightest of all enclosing groups
  std::optional<int64_t> memory_limit;   // bytes, likewise
  std::optional<int64_t> memory_total;   // bytes of the machine
  int default_threads = 1;               // physical cores, no more than the quota
};

// Reads affinity, /proc and /sys. Files are looked up below `root` ("/" for the real ones).
//
// Limits come from control groups of version 1 and 2, found by /proc/self/mountinfo and /proc/self/cgroup, in the
// process' own group and in every group around it.
CpuInfo read_cpu_info(const std::string& root = "/");

// Of the real files, read once.
const CpuInfo& cpu_info();

}  // namespace puna
