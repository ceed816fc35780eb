#include "cpu_info.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <set>
#include <sstream>
#include <string_view>

#include <sched.h>

namespace puna {
namespace {

// A mounted control group hierarchy: `root` is the group that appears at `point`.
struct Hierarchy {
  std::string root;
  std::string point;
  bool is_v2 = false;
};

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::optional<int64_t> as_integer(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Where the hierarchy of a controller ("cpu", "memory") is mounted: a version 1 mount that names it, else version 2.
std::optional<Hierarchy> find_hierarchy(const std::string& root, const std::string& controller) {
  std::ifstream mounts(root + "proc/self/mountinfo");
  std::optional<Hierarchy> v2;
  for (std::string line; std::getline(mounts, line);) {
    // 36 35 0:29 /root /mount/point options … - type source superoptions
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const std::vector<std::string> before = split(line.substr(0, dash), ' '), after = split(line.substr(dash + 3), ' ');
    if (before.size() < 5 || after.size() < 3) continue;
    if (after[0] == "cgroup" && contains(split(after[2], ','), controller)) return Hierarchy{before[3], before[4], false};
    if (after[0] == "cgroup2") v2 = Hierarchy{before[3], before[4], true};
  }
  return v2;
}

// The path of this process' group in a hierarchy, as /proc/self/cgroup gives it.
std::string group_path(const std::string& root, const std::string& controller, bool is_v2) {
  std::ifstream groups(root + "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    if (is_v2 ? names.empty() : contains(split(names, ','), controller)) return line.substr(second + 1);
  }
  return "/";
}

// The directories of the process' group and of all groups around it that are visible.
std::vector<std::string> group_directories(const std::string& root, const Hierarchy& hierarchy, std::string path) {
  // In a container the mount may show only the group's own subtree, named by the outer path.
  if (hierarchy.root != "/" && path.starts_with(hierarchy.root)) path = path.substr(hierarchy.root.size());
  if (path.find("..") != std::string::npos) path.clear();  // outside of what is visible
  std::vector<std::string> directories;
  const std::string base = root + hierarchy.point.substr(1);
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    directories.push_back(base + (path.empty() || path.front() == '/' ? "" : "/") + path);
    if (path.empty()) return directories;
    const size_t slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
}

template <typename T>
void tighten(std::optional<T>& limit, T value) {
  if (!limit || value < *limit) limit = value;
}

std::optional<double> read_quota(const std::string& root) {
  const std::optional<Hierarchy> hierarchy = find_hierarchy(root, "cpu");
  if (!hierarchy) return std::nullopt;
  std::optional<double> quota;
  for (const std::string& directory :
       group_directories(root, *hierarchy, group_path(root, "cpu", hierarchy->is_v2))) {
    std::optional<int64_t> micros, period;
    if (hierarchy->is_v2) {
      const std::vector<std::string> parts = split(first_line(directory + "/cpu.max").value_or(""), ' ');
      if (parts.size() == 2) {
        micros = as_integer(parts[0]);  // "max" is no number
        period = as_integer(parts[1]);
      }
    } else {
      micros = as_integer(first_line(directory + "/cpu.cfs_quota_us").value_or(""));
      period = as_integer(first_line(directory + "/cpu.cfs_period_us").value_or(""));
    }
    if (micros && period && *micros > 0 && *period > 0) {
      tighten(quota, static_cast<double>(*micros) / static_cast<double>(*period));
    }
  }
  return quota;
}

std::optional<int64_t> read_memory_limit(const std::string& root) {
  const std::optional<Hierarchy> hierarchy = find_hierarchy(root, "memory");
  if (!hierarchy) return std::nullopt;
  constexpr int64_t kUnlimited = int64_t{1} << 60;  // version 1 writes the largest multiple of a page for "none"
  std::optional<int64_t> limit;
  for (const std::string& directory :
       group_directories(root, *hierarchy, group_path(root, "memory", hierarchy->is_v2))) {
    const std::string file = hierarchy->is_v2 ? "/memory.max" : "/memory.limit_in_bytes";
    const std::optional<int64_t> bytes = as_integer(first_line(directory + file).value_or(""));
    if (bytes && *bytes > 0 && *bytes < kUnlimited) tighten(limit, *bytes);
  }
  return limit;
}

std::optional<int64_t> read_memory_total(const std::string& root) {
  std::ifstream info(root + "proc/meminfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("MemTotal:")) continue;
    const size_t digit = line.find_first_of("0123456789");
    if (digit == std::string::npos) break;
    const std::optional<int64_t> kilobytes = as_integer(std::string_view(line).substr(digit));
    if (kilobytes) return *kilobytes * 1024;
  }
  return std::nullopt;
}

std::vector<int> read_affinity() {
  std::vector<int> cores;
  for (int capacity = 1024; capacity <= 1 << 20; capacity *= 2) {  // the mask must be as large as the kernel's
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(capacity));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(capacity));
    CPU_ZERO_S(bytes, set);
    const bool is_read = sched_getaffinity(0, bytes, set) == 0;
    for (int core = 0; is_read && core < capacity; ++core) {
      if (CPU_ISSET_S(static_cast<size_t>(core), bytes, set)) cores.push_back(core);
    }
    CPU_FREE(set);
    if (is_read) break;
  }
  if (cores.empty()) cores.push_back(0);
  return cores;
}

int count_physical(const std::string& root, const std::vector<int>& cores) {
  std::set<std::string> distinct;
  for (const int core : cores) {
    const std::string topology = root + "sys/devices/system/cpu/cpu" + std::to_string(core) + "/topology/";
    distinct.insert(first_line(topology + "thread_siblings_list").value_or(std::to_string(core)));
  }
  return static_cast<int>(distinct.size());
}

}  // namespace

CpuInfo read_cpu_info(const std::string& root) {
  const std::string base = root.ends_with('/') ? root : root + "/";
  CpuInfo info;
  info.affinity = read_affinity();
  info.physical_cores = count_physical(base, info.affinity);
  info.cpu_quota = read_quota(base);
  info.memory_limit = read_memory_limit(base);
  info.memory_total = read_memory_total(base);
  info.default_threads = info.physical_cores;
  // Threads beyond the quota are stopped for the rest of each period while the others wait for them.
  if (info.cpu_quota) {
    const double cores = std::clamp(*info.cpu_quota, 1.0, static_cast<double>(info.physical_cores));
    info.default_threads = static_cast<int>(cores);
  }
  return info;
}

const CpuInfo& cpu_info() {
  static const CpuInfo info = read_cpu_info();
  return info;
}

}  // namespace puna
