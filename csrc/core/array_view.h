// An array of the caller's: C-contiguous memory with an element type and a shape.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace puna {

enum class ElementType : uint8_t { f32, f16, bf16, i8, u8, i32, u32, i64, other };

constexpr int64_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::f32:
    case ElementType::i32:
    case ElementType::u32:
      return 4;
    case ElementType::f16:
    case ElementType::bf16:
      return 2;
    case ElementType::i64:
      return 8;
    default:
      return 1;
  }
}

constexpr const char* element_name(ElementType type) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int8",    "uint8",
                                    "int32",   "uint32",  "int64",    "another type"};
  return kNames[static_cast<int>(type)];
}

struct ArrayView {
  uint8_t* data = nullptr;
  ElementType type = ElementType::other;
  std::vector<int64_t> shape;

  int64_t elements() const {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// "[2, 3]".
inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (const int64_t size : shape) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + "]";
}

}  // namespace puna
