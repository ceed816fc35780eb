#include "case_file.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace puna::replay {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

Words split(const std::string& text, char separator) {
  Words parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::vector<int64_t> separated_integers(const std::string& text, char separator) {
  std::vector<int64_t> values;
  for (const std::string& part : split(text, separator)) values.push_back(std::stoll(part));
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
      return separated_integers(value, ',');
    case 'a':
      return floats(recorded, value);
    default:
      fail("no value: " + text);
  }
}

RecordedArray array_of(const Case& recorded, const std::string& type, const std::string& shape,
                       const std::string& data) {
  RecordedArray array;
  array.type = type_called(type);
  array.shape = separated_integers(shape, 'x');
  array.bytes = blob(recorded, data);
  int64_t bytes = element_bytes(array.type);
  for (const int64_t size : array.shape) bytes *= size;
  if (bytes != static_cast<int64_t>(array.bytes.size())) fail("an array's data and shape do not fit: " + shape);
  return array;
}

void read_array(Case& recorded, const Words& words) {
  if (words[0] == "input") {
    const RecordedArray input = array_of(recorded, words.at(2), words.at(3), words.at(4));
    recorded.inputs.emplace(words.at(1), input);
    recorded.after.emplace(words.at(1), input);
  } else if (words[0] == "output") {
    recorded.outputs.push_back(array_of(recorded, words.at(1), words.at(2), words.at(3)));
  } else {
    std::vector<uint8_t>& bytes = recorded.after.at(words.at(1)).bytes;
    const std::vector<uint8_t> change = blob(recorded, words.at(3));
    const size_t offset = std::stoul(words.at(2));
    if (offset > bytes.size() || change.size() > bytes.size() - offset) fail("no such bytes: " + words.at(2));
    std::copy(change.begin(), change.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  }
}

}  // namespace

std::vector<uint8_t> blob(const Case& recorded, const std::string& place) {
  const std::vector<int64_t> range = separated_integers(place, '+');
  const int64_t size = static_cast<int64_t>(recorded.data.size());
  if (range.size() != 2 || range[0] < 0 || range[1] < 0 || range[0] > size || range[1] > size - range[0]) {
    fail("no such part of the data: " + place);
  }
  const auto begin = recorded.data.begin() + range[0];
  return {begin, begin + range[1]};
}

std::vector<float> floats(const Case& recorded, const std::string& place) {
  const std::vector<uint8_t> bytes = blob(recorded, place);
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

Fields fields_of(const Case& recorded, const Words& words, size_t begin) {
  Fields fields;
  for (size_t i = begin; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == std::string::npos) fail("no field: " + words[i]);
    fields.emplace(words[i].substr(0, equals), field_value(recorded, words[i].substr(equals + 1)));
  }
  return fields;
}

Case read_case(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Case recorded;
  recorded.name = std::filesystem::path(path).stem();
  std::vector<Words> arrays;
  for (std::string line; std::getline(file, line);) {
    const Words words = split(line, ' ');
    if (words.empty()) continue;
    if (words[0] == "data") {
      recorded.data.resize(static_cast<size_t>(std::stoll(words.at(1))));
      file.read(reinterpret_cast<char*>(recorded.data.data()), static_cast<std::streamsize>(recorded.data.size()));
      if (!file || file.peek() != std::ifstream::traits_type::eof()) fail(path + " is not as long as it says");
      for (const Words& array : arrays) read_array(recorded, array);
      return recorded;
    }
    const bool is_array = words[0] == "input" || words[0] == "output" || words[0] == "change";
    (is_array ? arrays : words[0] == "kernel" ? recorded.calls : recorded.lines).push_back(words);
  }
  fail(path + " is no recorded case");
}

Call::Call(const Case& recorded, const Words& words) : recorded_(recorded), op_(words.at(1)) {
  for (size_t i = 2; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == std::string::npos) fail("no field: " + words[i]);
    values_.emplace(words[i].substr(0, equals), words[i].substr(equals + 1));
  }
}

std::string Call::value(const std::string& name, char kind) const {
  const auto found = values_.find(name);
  if (found == values_.end()) fail(op_ + " lacks the field " + name);
  if (found->second.size() < 2 || found->second[0] != kind || found->second[1] != ':') {
    fail(op_ + ": field " + name + " is of another kind than " + kind);
  }
  return found->second.substr(2);
}

int64_t Call::integer(const std::string& name) const { return std::stoll(value(name, 'i')); }
float Call::number(const std::string& name) const { return std::strtof(value(name, 'f').c_str(), nullptr); }
std::vector<int64_t> Call::integers(const std::string& name) const {
  return separated_integers(value(name, 'l'), ',');
}
std::vector<float> Call::floats(const std::string& name) const { return replay::floats(recorded_, value(name, 'a')); }
std::vector<uint8_t> Call::bytes(const std::string& name) const { return blob(recorded_, value(name, 'u')); }

}  // namespace puna::replay
