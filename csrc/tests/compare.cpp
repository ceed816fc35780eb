#include "compare.h"

#include <cstdio>
#include <cstring>

namespace puna::replay {
namespace {

bool is_nan(const uint8_t* element) {
  uint32_t word;
  std::memcpy(&word, element, sizeof word);
  return (word & 0x7fffffff) > 0x7f800000;
}

std::string element_text(ElementType type, const uint8_t* element) {
  char text[64];
  std::string hex = "0x";
  for (int64_t i = element_bytes(type) - 1; i >= 0; --i) {
    std::snprintf(text, sizeof text, "%02x", element[i]);
    hex += text;
  }
  if (type != ElementType::f32) return hex;
  float value;
  std::memcpy(&value, element, sizeof value);
  std::snprintf(text, sizeof text, " (%.9g)", static_cast<double>(value));
  return hex + text;
}

}  // namespace

bool is_equal(const std::string& where, ElementType type, const void* found, const void* recorded, int64_t count) {
  const int64_t size = element_bytes(type);
  const uint8_t* a = static_cast<const uint8_t*>(found);
  const uint8_t* b = static_cast<const uint8_t*>(recorded);
  if (count == 0 || std::memcmp(a, b, static_cast<size_t>(count * size)) == 0) return true;
  int64_t differing = 0, first = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (std::memcmp(a + i * size, b + i * size, static_cast<size_t>(size)) == 0) continue;
    if (type == ElementType::f32 && is_nan(a + i * size) && is_nan(b + i * size)) continue;
    if (differing++ == 0) first = i;
  }
  if (differing == 0) return true;
  std::printf("  %s: element %lld of %lld is %s, recorded is %s; %lld differ\n", where.c_str(),
              static_cast<long long>(first), static_cast<long long>(count), element_text(type, a + first * size).c_str(),
              element_text(type, b + first * size).c_str(), static_cast<long long>(differing));
  return false;
}

bool is_equal_rows(const std::string& where, const float* found, int64_t ld, const float* recorded, int64_t rows,
                   int64_t width) {
  constexpr uint32_t kUntouched = 0xffffffff;
  for (int64_t row = 0; row < rows; ++row) {
    const float* line = found + row * ld;
    if (!is_equal(where + ", row " + std::to_string(row), line, recorded + row * width, width)) return false;
    for (int64_t column = width; column < ld && row + 1 < rows; ++column) {
      if (std::memcmp(line + column, &kUntouched, sizeof kUntouched) == 0) continue;
      std::printf("  %s: column %lld behind row %lld was written\n", where.c_str(), static_cast<long long>(column),
                  static_cast<long long>(row));
      return false;
    }
  }
  return true;
}

}  // namespace puna::replay
