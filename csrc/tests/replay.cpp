// Replays recorded kernel cases on every variant that this machine can run and compares bit by bit: single kernels
// against the ends of their operands, programs with one and with several threads. No Python is needed, so that
// sanitizers and emulated machines run the same cases.
//
//   puna_replay DIRECTORY [VARIANT…]
//
// Exit status: 0 when everything that could run gave the recorded bits, 1 when not, 2 for wrong arguments.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>

#include "core/variants.h"
#include "exercises.h"
#include "kernel_calls.h"
#include "program_case.h"

namespace puna::replay {
namespace {

constexpr int kThreads[] = {1, 2, 5};

struct Count {
  int good = 0, all = 0;
  void add(bool is_good) {
    good += is_good;
    ++all;
  }
};

std::vector<Case> read_cases(const std::string& directory) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".case") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Case> cases;
  for (const std::string& path : paths) cases.push_back(read_case(path));
  return cases;
}

// Whether everything ran as recorded on this variant.
bool replay_variant(const std::vector<Case>& cases, const std::string& variant) {
  const KernelTable& kernels = kernels_of(variant);
  Count calls, programs;
  for (const Case& recorded : cases) {
    for (const Words& words : recorded.calls) {
      const Call call(recorded, words);
      const bool is_good = run_call(call, kernels);
      if (!is_good) std::printf("%-12s FAILED: %s\n", variant.c_str(), call.where().c_str());
      calls.add(is_good);
    }
    if (!recorded.calls.empty()) continue;
    bool is_good = true;
    for (const int threads : kThreads) is_good &= run_program(recorded, kernels, threads);
    if (!is_good) std::printf("%-12s FAILED: %s\n", variant.c_str(), recorded.name.c_str());
    programs.add(is_good);
  }
  std::printf("%-12s kernel calls %d of %d, programs %d of %d have the recorded bits\n", variant.c_str(), calls.good,
              calls.all, programs.good, programs.all);
  return calls.good == calls.all && programs.good == programs.all;
}

bool report(const char* what, bool is_good) {
  std::printf("%s: %s\n", what, is_good ? "good" : "FAILED");
  return is_good;
}

int replay_all(const std::string& directory, std::vector<std::string> variants) {
  const std::vector<Case> cases = read_cases(directory);
  if (cases.empty()) {
    std::printf("%s holds no cases\n", directory.c_str());
    return 1;
  }
  const std::vector<std::string> supported = supported_variants();
  if (variants.empty()) variants = compiled_variants();
  bool is_good = true;
  for (const std::string& variant : variants) {
    if (std::find(supported.begin(), supported.end(), variant) == supported.end()) {
      std::printf("%-12s not run: this machine does not have it\n", variant.c_str());
      continue;
    }
    is_good &= replay_variant(cases, variant);
  }
  is_good &= report("threads that take pieces", exercise_pool());
  is_good &= report("pieces of work", exercise_division());
  is_good &= report("programs side by side", exercise_programs(cases));
  is_good &= report("a file that is cut while mapped", exercise_mapped_file());
  return is_good ? 0 : 1;
}

}  // namespace
}  // namespace puna::replay

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: puna_replay DIRECTORY [VARIANT...]\n");
    return 2;
  }
  try {
    return puna::replay::replay_all(arguments[1], {arguments + 2, arguments + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "puna_replay: %s\n", error.what());
    return 1;
  }
}
