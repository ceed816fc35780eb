#include "program_case.h"

#include <memory>
#include <stdexcept>

#include "compare.h"
#include "core/program.h"
#include "core/weights.h"

namespace puna::replay {
namespace {

void add_matrix(const Case& recorded, const Words& words, Program& program) {
  const Format* format = find_format(words.at(1).c_str());
  if (format == nullptr) throw std::runtime_error("no such format: " + words[1]);
  const std::vector<uint8_t> data = blob(recorded, words.at(5));
  program.weight(pack_matrix(*format, data.data(), static_cast<int64_t>(data.size()), std::stoll(words.at(2)),
                             std::stoll(words.at(3)), words.at(4) == "full", 1));
}

std::unique_ptr<Program> build_program(const Case& recorded, const KernelTable& kernels) {
  auto program = std::make_unique<Program>(kernels);
  for (const Words& words : recorded.lines) {
    const std::string& what = words[0];
    if (what == "buffer") {
      program->buffer(words.at(1), std::stoll(words.at(2)));
    } else if (what == "matrix") {
      add_matrix(recorded, words, *program);
    } else if (what == "vector") {
      program->weight(floats(recorded, words.at(1)));
    } else if (what == "rope") {
      program->rope(words.at(1), fields_of(recorded, words, 2));
    } else if (what == "begin_sub") {
      program->begin_sub(words.at(1));
    } else if (what == "end_sub") {
      program->end_sub();
    } else if (what == "emit") {
      program->emit(words.at(1), fields_of(recorded, words, 2));
    } else {
      throw std::runtime_error("no such line: " + what);
    }
  }
  program->finish();
  return program;
}

bool is_as_recorded(const std::string& where, const std::vector<uint8_t>& found, const RecordedArray& recorded) {
  const int64_t count = static_cast<int64_t>(found.size()) / element_bytes(recorded.type);
  return is_equal(where, recorded.type, found.data(), recorded.bytes.data(), count);
}

}  // namespace

bool run_program(const Case& recorded, const KernelTable& kernels, int threads) {
  const std::unique_ptr<Program> program = build_program(recorded, kernels);
  std::map<std::string, RecordedArray> held = recorded.inputs;
  Inputs inputs;
  for (auto& [name, array] : held) inputs.emplace(name, ArrayView{array.bytes.data(), array.type, array.shape});
  std::vector<std::vector<uint8_t>> results;
  std::vector<ArrayView> outputs;
  for (const RecordedArray& output : recorded.outputs) {
    results.emplace_back(output.bytes.size(), uint8_t{0xff});
    outputs.push_back({results.back().data(), output.type, output.shape});
  }
  program->execute(inputs, outputs, threads);
  const std::string where = recorded.name + " with " + std::to_string(threads) + " threads, ";
  bool is_good = true;
  for (size_t i = 0; i < results.size(); ++i) {
    is_good &= is_as_recorded(where + "output " + std::to_string(i), results[i], recorded.outputs[i]);
  }
  for (const auto& [name, array] : recorded.after) is_good &= is_as_recorded(where + name, held.at(name).bytes, array);
  return is_good;
}

}  // namespace puna::replay
