// Comparison of bits, and what is printed where they differ.
#pragma once

#include <cstdint>
#include <string>

#include "core/array_view.h"

namespace puna::replay {

// Whether `count` elements have the recorded bits; prints `where` and the first element that does not.
// Every float32 NaN equals every other: processors choose their sign and payload.
bool is_equal(const std::string& where, ElementType type, const void* found, const void* recorded, int64_t count);

inline bool is_equal(const std::string& where, const float* found, const float* recorded, int64_t count) {
  return is_equal(where, ElementType::f32, found, recorded, count);
}
inline bool is_equal(const std::string& where, const uint8_t* found, const uint8_t* recorded, int64_t count) {
  return is_equal(where, ElementType::u8, found, recorded, count);
}

// The same for rows that are `ld` floats apart in `found` and next to each other in `recorded`. What lies between the
// rows must have stayed as Guarded fills it.
bool is_equal_rows(const std::string& where, const float* found, int64_t ld, const float* recorded, int64_t rows,
                   int64_t width);

}  // namespace puna::replay
