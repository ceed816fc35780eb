#include "program_case.h"

#include <memory>
#include <stdexcept>

#include "compare.h"
#include "core/adapter.h"
#include "core/program.h"
#include "core/weights.h"

namespace puna::replay {
namespace {

std::shared_ptr<PackedMatrix> pack(const Case& recorded, const std::string& name, const std::string& rows,
                                   const std::string& cols, bool is_full, const std::string& place) {
  const Format* format = find_format(name.c_str());
  if (format == nullptr) throw std::runtime_error("no such format: " + name);
  const std::vector<uint8_t> data = blob(recorded, place);
  return pack_matrix(*format, data.data(), static_cast<int64_t>(data.size()), std::stoll(rows), std::stoll(cols),
                     is_full, 1);
}

void add_matrix(const Case& recorded, const Words& words, Program& program) {
  program.weight(pack(recorded, words.at(1), words.at(2), words.at(3), words.at(4) == "full", words.at(5)));
}

void add_slots(const Case& recorded, Program& program) {
  std::vector<std::shared_ptr<Adapter>> adapters;
  for (const Words& words : recorded.lines) {
    if (words[0] == "slots") {
      adapters.resize(static_cast<size_t>(std::stoll(words.at(1))));
      for (auto& adapter : adapters) adapter = std::make_shared<Adapter>();
    } else if (words[0] == "update") {
      LowRank update;
      update.scale = std::stof(words.at(4));
      update.a = pack(recorded, words.at(5), words.at(6), words.at(7), true, words.at(8));
      update.b = pack(recorded, words.at(9), words.at(10), words.at(11), true, words.at(12));
      adapters.at(static_cast<size_t>(std::stoll(words.at(1))))
          ->set(std::stoll(words.at(2)), std::stoll(words.at(3)), std::move(update));
    }
  }
  if (adapters.empty()) return;
  const auto slots = std::make_shared<AdapterSlots>(static_cast<int64_t>(adapters.size()));
  for (size_t slot = 0; slot < adapters.size(); ++slot) slots->set(static_cast<int64_t>(slot), adapters[slot]);
  program.adapters(slots);
}

std::unique_ptr<Program> build_program(const Case& recorded, const KernelTable& kernels) {
  auto program = std::make_unique<Program>(kernels);
  add_slots(recorded, *program);
  for (const Words& words : recorded.lines) {
    const std::string& what = words[0];
    if (what == "slots" || what == "update") continue;
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
