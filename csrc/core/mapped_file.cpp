#include "mapped_file.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <mutex>
#include <stdexcept>
#include <system_error>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace puna {
namespace {

// The handler may run in any thread at any moment, so it reads a fixed table of atomics and takes no lock.
struct Mapping {
  std::atomic<uintptr_t> begin{0};  // 0: free
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> is_damaged{false};
};
constexpr int kMaxMappings = 4096;  // a split checkpoint has a few hundred files
Mapping mappings[kMaxMappings];
constexpr uintptr_t kHugePage = 1 << 21;
std::mutex table_mutex;  // for registering; never taken by the handler
struct sigaction previous_action;
std::atomic<int> forwarding{0};

void end_process(int signal, const siginfo_t* info) {
  // The faulting instruction runs again after the return, and ends the process as it would have without us.
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  sigaction(signal, &standard, nullptr);
  if (info->si_code <= 0) raise(signal);  // sent by a process: there is no instruction to run again
}

void forward(int signal, siginfo_t* info, void* context) {
  // A handler installed after ours has ours as its previous one, which might call it again: no more than a few times.
  if (forwarding.fetch_add(1) >= 4) {
    end_process(signal, info);
  } else if (previous_action.sa_flags & SA_SIGINFO) {
    previous_action.sa_sigaction(signal, info, context);
  } else if (previous_action.sa_handler == SIG_DFL || previous_action.sa_handler == SIG_IGN) {
    end_process(signal, info);
  } else {
    previous_action.sa_handler(signal);
  }
  forwarding.fetch_sub(1);
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  if (info->si_code == BUS_ADRERR) {
    const uintptr_t fault = reinterpret_cast<uintptr_t>(info->si_addr);
    for (Mapping& mapping : mappings) {
      const uintptr_t begin = mapping.begin.load(std::memory_order_acquire);
      const uintptr_t end = mapping.end.load(std::memory_order_acquire);
      if (begin == 0 || fault < begin || fault >= end) continue;
      const uintptr_t page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
      const uintptr_t page = fault / page_size * page_size;
      mapping.is_damaged.store(true, std::memory_order_release);
      // Pages before the fault may still be good; everything from it on is gone or about to be.
      void* zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      if (zeros == MAP_FAILED) break;
      errno = saved_errno;
      return;
    }
  }
  forward(signal, info, context);
  errno = saved_errno;
}

// Installed once; installed again should somebody else have replaced it since (faulthandler does).
void install_handler() {
  struct sigaction current = {};
  sigaction(SIGBUS, nullptr, &current);
  if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return;
  previous_action = current;
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

int register_mapping(uintptr_t begin, uintptr_t end) {
  const std::lock_guard lock(table_mutex);
  for (int slot = 0; slot < kMaxMappings; ++slot) {
    if (mappings[slot].begin.load(std::memory_order_relaxed) != 0) continue;
    mappings[slot].is_damaged.store(false, std::memory_order_relaxed);
    mappings[slot].end.store(end, std::memory_order_release);
    mappings[slot].begin.store(begin, std::memory_order_release);
    install_handler();
    return slot;
  }
  return -1;
}

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : value_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }

 private:
  int value_;
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor file(path);  // O_NONBLOCK: opening a pipe must not wait for its writer
  if (file.value() < 0) throw std::system_error(errno, std::generic_category(), path);
  struct stat status = {};
  if (fstat(file.value(), &status) != 0) throw std::system_error(errno, std::generic_category(), path);
  if (!S_ISREG(status.st_mode)) throw std::invalid_argument(path + " is not a regular file");
  if (status.st_size == 0) throw std::invalid_argument(path + " is empty");
  size_ = status.st_size;
  void* memory = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file.value(), 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), path);
  data_ = static_cast<const uint8_t*>(memory);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  slot_ = register_mapping(begin, begin + static_cast<size_t>(size_));
  if (slot_ < 0) {
    munmap(memory, static_cast<size_t>(size_));
    throw std::runtime_error(path + " cannot be mapped: " + std::to_string(kMaxMappings) + " files are mapped already");
  }
}

MappedFile::~MappedFile() {
  {
    const std::lock_guard lock(table_mutex);
    mappings[slot_].begin.store(0, std::memory_order_release);
  }
  munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
}

void MappedFile::release(const uint8_t* data, int64_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(data), last = first + static_cast<uintptr_t>(bytes);
  for (const Mapping& mapping : mappings) {
    const uintptr_t begin = mapping.begin.load(std::memory_order_acquire);
    const uintptr_t end = mapping.end.load(std::memory_order_acquire);
    if (begin == 0 || first < begin || last > end) continue;
    // A fault maps its neighbours too, at most to the borders of a huge page.
    const uintptr_t from = std::max(first / kHugePage * kHugePage, begin);
    const uintptr_t to = std::min((last + kHugePage - 1) / kHugePage * kHugePage, end);
    madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
    return;
  }
}

bool MappedFile::is_damaged() const { return mappings[slot_].is_damaged.load(std::memory_order_acquire); }

}  // namespace puna
