#include "fields.h"

#include <cmath>

#include "text.h"

namespace puna {

const FieldValue* FieldReader::find(const std::string& name, bool is_required) {
  read_.insert(name);
  const auto found = fields_.find(name);
  if (found != fields_.end()) return &found->second;
  if (is_required) invalid(owner_, ": field '", name, "' is missing");
  return nullptr;
}

template <typename T>
const T& FieldReader::take(const std::string& name, const char* type) {
  const T* value = std::get_if<T>(find(name, true));
  if (value == nullptr) invalid(owner_, ": field '", name, "' must be ", type);
  return *value;
}

int64_t FieldReader::integer(const std::string& name, int64_t least, int64_t most) {
  const int64_t value = take<int64_t>(name, "an integer");
  if (value < least || value > most) {
    invalid(owner_, ": field '", name, "' must be ", least, " to ", most, ", got ", value);
  }
  return value;
}

double FieldReader::number(const std::string& name) {
  const FieldValue& value = *find(name, true);
  double number = 0;
  if (const int64_t* integer = std::get_if<int64_t>(&value)) {
    number = static_cast<double>(*integer);
  } else {
    number = take<double>(name, "a number");
  }
  if (!std::isfinite(number)) invalid(owner_, ": field '", name, "' must be finite");
  return number;
}

bool FieldReader::flag(const std::string& name) { return take<bool>(name, "True or False"); }

size_t FieldReader::choice(const std::string& name, std::initializer_list<const char*> names) {
  const std::string& value = take<std::string>(name, "a string");
  std::string all;
  for (size_t i = 0; i < names.size(); ++i) {
    if (value == names.begin()[i]) return i;
    all += (i == 0 ? "'" : ", '") + std::string(names.begin()[i]) + "'";
  }
  invalid(owner_, ": field '", name, "' must be one of ", all, ", got '", value, "'");
}

std::vector<int64_t> FieldReader::integers(const std::string& name, int64_t least, int64_t most) {
  const std::vector<int64_t>& values = take<std::vector<int64_t>>(name, "a list of integers");
  for (const int64_t value : values) {
    if (value < least || value > most) {
      invalid(owner_, ": field '", name, "' must hold ", least, " to ", most, ", got ", value);
    }
  }
  return values;
}

std::vector<float> FieldReader::floats(const std::string& name) {
  const std::vector<float>& values = take<std::vector<float>>(name, "a float32 array");
  for (const float value : values) {
    if (!std::isfinite(value)) invalid(owner_, ": field '", name, "' must be finite throughout");
  }
  return values;
}

std::string FieldReader::optional_text(const std::string& name, const std::string& otherwise) {
  return find(name, false) == nullptr ? otherwise : take<std::string>(name, "a string");
}

void FieldReader::finish() const {
  for (const auto& [name, value] : fields_) {
    if (!read_.contains(name)) invalid(owner_, ": unknown field '", name, "'");
  }
}

}  // namespace puna
