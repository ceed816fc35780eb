// Replays recorded kernel cases on every variant that this machine can run, with one and with several threads, and
// compares bit by bit. No Python is needed, so that sanitizers and emulated machines run the same cases.
//
//   puna_replay DIRECTORY [VARIANT…]
//
// Exit status: 0 when everything that could run gave the recorded bits, 1 when not, 2 for wrong arguments.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>

#include "case_file.h"
#include "core/variants.h"

namespace puna::replay {
namespace {

constexpr int kThreads[] = {1, 2, 5};

bool is_equal(const std::string& where, const std::vector<uint8_t>& found, const std::vector<uint8_t>& wanted) {
  const auto [a, b] = std::mismatch(found.begin(), found.end(), wanted.begin(), wanted.end());
  if (a == found.end() && b == wanted.end()) return true;
  std::printf("  %s differs from byte %td of %zu on\n", where.c_str(), a - found.begin(), wanted.size());
  return false;
}

bool run_case(const Case& recorded, const KernelTable& kernels, int threads) {
  const std::unique_ptr<Program> program = build_program(recorded, kernels);
  std::map<std::string, RecordedArray> held = recorded.inputs;
  Inputs inputs;
  for (auto& [name, array] : held) inputs.emplace(name, ArrayView{array.bytes.data(), array.type, array.shape});
  std::vector<std::vector<uint8_t>> results;
  std::vector<ArrayView> outputs;
  for (const RecordedArray& wanted : recorded.outputs) {
    results.emplace_back(wanted.bytes.size(), uint8_t{0xff});
    outputs.push_back({results.back().data(), wanted.type, wanted.shape});
  }
  program->execute(inputs, outputs, threads);
  bool is_good = true;
  for (size_t i = 0; i < results.size(); ++i) {
    is_good &= is_equal("output " + std::to_string(i), results[i], recorded.outputs[i].bytes);
  }
  for (const auto& [name, wanted] : recorded.after) is_good &= is_equal(name, held.at(name).bytes, wanted.bytes);
  return is_good;
}

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

int replay_all(const std::string& directory, std::vector<std::string> variants) {
  const std::vector<Case> cases = read_cases(directory);
  if (cases.empty()) {
    std::printf("%s holds no cases\n", directory.c_str());
    return 1;
  }
  const std::vector<std::string> supported = supported_variants();
  if (variants.empty()) variants = compiled_variants();
  int failures = 0;
  for (const std::string& variant : variants) {
    if (std::find(supported.begin(), supported.end(), variant) == supported.end()) {
      std::printf("%-7s not run: this machine does not have it\n", variant.c_str());
      continue;
    }
    int good = 0;
    for (const Case& recorded : cases) {
      for (const int threads : kThreads) {
        if (run_case(recorded, kernels_of(variant), threads)) {
          ++good;
        } else {
          ++failures;
          std::printf("%-7s FAILED: %s with %d threads\n", variant.c_str(), recorded.name.c_str(), threads);
        }
      }
    }
    std::printf("%-7s %d of %zu runs have the recorded bits\n", variant.c_str(), good, cases.size() * std::size(kThreads));
  }
  return failures == 0 ? 0 : 1;
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
