// The named fields of an instruction or a rope specification, and how they are read: every one of them exactly once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

namespace puna {

using FieldValue =
    std::variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<float>>;
using Fields = std::map<std::string, FieldValue>;

// Reads fields and throws std::invalid_argument, naming `owner`, for one that is missing, of another type, out of its
// range, or (in `finish`) that nobody asked for.
class FieldReader {
 public:
  FieldReader(std::string owner, const Fields& fields) : owner_(std::move(owner)), fields_(fields) {}

  int64_t integer(const std::string& name, int64_t least, int64_t most);
  double number(const std::string& name);  // finite
  bool flag(const std::string& name);
  size_t choice(const std::string& name, std::initializer_list<const char*> names);  // the index of the one given
  std::vector<int64_t> integers(const std::string& name, int64_t least, int64_t most);
  std::vector<float> floats(const std::string& name);  // finite
  std::string optional_text(const std::string& name, const std::string& otherwise);
  void finish() const;

  const std::string& owner() const { return owner_; }

 private:
  const FieldValue* find(const std::string& name, bool is_required);
  template <typename T>
  const T& take(const std::string& name, const char* type);

  std::string owner_;
  const Fields& fields_;
  std::set<std::string> read_;
};

}  // namespace puna
