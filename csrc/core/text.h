// Messages from parts, and the exception for what a caller got wrong.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace puna {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// Becomes ValueError in Python.
template <typename... Parts>
[[noreturn]] void invalid(const Parts&... parts) {
  throw std::invalid_argument(text(parts...));
}

}  // namespace puna
