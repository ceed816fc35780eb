#include "case_file.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "core/weights.h"

namespace puna::replay {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::vector<int64_t> integers(const std::string& text, char separator) {
  std::vector<int64_t> values;
  for (const std::string& part : split(text, separator)) values.push_back(std::stoll(part));
  return values;
}

std::vector<uint8_t> blob(const Case& recorded, const std::string& text) {
  const std::vector<int64_t> place = integers(text, '+');
  const int64_t size = static_cast<int64_t>(recorded.data.size());
  if (place.size() != 2 || place[0] < 0 || place[1] < 0 || place[0] > size || place[1] > size - place[0]) {
    fail("no such part of the data: " + text);
  }
  const auto begin = recorded.data.begin() + place[0];
  return {begin, begin + place[1]};
}

std::vector<float> floats(const Case& recorded, const std::string& text) {
  const std::vector<uint8_t> bytes = blob(recorded, text);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::copy_n(bytes.data(), values.size() * sizeof(float), reinterpret_cast<uint8_t*>(values.data()));
  return values;
}

ElementType type_called(const std::string& name) {
  for (const ElementType type : {ElementType::f32, ElementType::f16, ElementType::bf16, ElementType::i8,
                                 ElementType::u8, ElementType::i32, ElementType::u32, ElementType::i64}) {
    if (name == element_name(type)) return type;
  }
  fail("no such type: " + name);
}

FieldValue field_value(const Case& recorded, const std::string& text) {
  if (text.size() < 2 || text[1] != ':') fail("no value: " + text);
  const std::string value = text.substr(2);
  switch (text[0]) {
    case 'i':
      return static_cast<int64_t>(std::stoll(value));
    case 'f':
      return std::strtod(value.c_str(), nullptr);
    case 'b':
      return value == "1";
    case 's':
      return value;
    case 'l':
      return integers(value, ',');
    case 'a':
      return floats(recorded, value);
    default:
      fail("no value: " + text);
  }
}

Fields fields_of(const Case& recorded, const std::vector<std::string>& words, size_t begin) {
  Fields fields;
  for (size_t i = begin; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == std::string::npos) fail("no field: " + words[i]);
    fields.emplace(words[i].substr(0, equals), field_value(recorded, words[i].substr(equals + 1)));
  }
  return fields;
}

RecordedArray array_of(const Case& recorded, const std::string& type, const std::string& shape,
                       const std::string& data) {
  RecordedArray array;
  array.type = type_called(type);
  array.shape = integers(shape, 'x');
  array.bytes = blob(recorded, data);
  int64_t bytes = element_bytes(array.type);
  for (const int64_t size : array.shape) bytes *= size;
  if (bytes != static_cast<int64_t>(array.bytes.size())) fail("an array's data and shape do not fit: " + shape);
  return array;
}

void add_matrix(const Case& recorded, const std::vector<std::string>& words, Program& program) {
  const Format* format = find_format(words.at(1).c_str());
  if (format == nullptr) fail("no such format: " + words[1]);
  const std::vector<uint8_t> data = blob(recorded, words.at(5));
  program.weight(pack_matrix(*format, data.data(), static_cast<int64_t>(data.size()), std::stoll(words.at(2)),
                             std::stoll(words.at(3)), words.at(4) == "full", 1));
}

}  // namespace

Case read_case(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Case recorded;
  recorded.name = std::filesystem::path(path).stem();
  std::vector<std::vector<std::string>> arrays;
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> words = split(line, ' ');
    if (words.empty()) continue;
    if (words[0] == "data") {
      recorded.data.resize(static_cast<size_t>(std::stoll(words.at(1))));
      file.read(reinterpret_cast<char*>(recorded.data.data()), static_cast<std::streamsize>(recorded.data.size()));
      if (!file) fail(path + " is shorter than it says");
      for (const std::vector<std::string>& array : arrays) {
        if (array[0] == "input") {
          const RecordedArray input = array_of(recorded, array.at(2), array.at(3), array.at(4));
          recorded.inputs.emplace(array.at(1), input);
          recorded.after.emplace(array.at(1), input);
        } else if (array[0] == "output") {
          recorded.outputs.push_back(array_of(recorded, array.at(1), array.at(2), array.at(3)));
        } else {
          std::vector<uint8_t>& bytes = recorded.after.at(array.at(1)).bytes;
          const std::vector<uint8_t> change = blob(recorded, array.at(3));
          const size_t offset = std::stoul(array.at(2));
          if (offset > bytes.size() || change.size() > bytes.size() - offset) fail("no such bytes: " + array.at(2));
          std::copy(change.begin(), change.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
        }
      }
      return recorded;
    }
    const bool is_array = words[0] == "input" || words[0] == "output" || words[0] == "change";
    (is_array ? arrays : recorded.lines).push_back(words);
  }
  fail(path + " is no recorded case");
}

std::unique_ptr<Program> build_program(const Case& recorded, const KernelTable& kernels) {
  auto program = std::make_unique<Program>(kernels);
  for (const std::vector<std::string>& words : recorded.lines) {
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
      fail("no such line: " + what);
    }
  }
  program->finish();
  return program;
}

}  // namespace puna::replay
