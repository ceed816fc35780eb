// What the files of the Python module share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "core/array_view.h"

namespace puna::bindings {

namespace nb = nanobind;

enum class Access : uint8_t { read, write };

// A C-contiguous array argument, held while this object lives (with the interpreter lock taken and given back).
// Takes everything with the buffer protocol, and arrays whose dtype is called bfloat16.
// Throws TypeError when it is no array, ValueError when it is not contiguous, or not writable where it must be.
class Array {
 public:
  Array(nb::handle object, const std::string& name, Access access = Access::read);
  ~Array();
  Array(Array&& other) noexcept;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const ArrayView& view() const { return view_; }
  int64_t bytes() const { return buffer_.len; }

 private:
  Py_buffer buffer_{};
  ArrayView view_;
};

// The view of an argument that must have this element type and number of dimensions (TypeError, ValueError).
const ArrayView& expect(const Array& array, const std::string& name, ElementType type, size_t dimensions);

// A new NumPy array that takes over the values.
template <typename T>
nb::object to_numpy(std::vector<T>&& values, std::initializer_list<int64_t> shape) {
  auto* owned = new std::vector<T>(std::move(values));
  const nb::capsule owner(owned, [](void* pointer) noexcept { delete static_cast<std::vector<T>*>(pointer); });
  std::vector<size_t> sizes(shape.begin(), shape.end());
  return nb::cast(nb::ndarray<nb::numpy, T>(owned->data(), sizes.size(), sizes.data(), owner));
}

// The number of threads of an optional argument: None means as many as this process should use.
int thread_count(nb::handle threads);

void bind_machine(nb::module_& m);
void bind_weights(nb::module_& m);
void bind_program(nb::module_& m);

}  // namespace puna::bindings
