// The module puna._native: what is called from Python, and nothing that computes. Exceptions of the core become
// ValueError (std::invalid_argument), RuntimeError (std::runtime_error), MemoryError and OSError.
#include "bindings.h"

#include <nanobind/stl/string.h>

#include <cstring>
#include <system_error>
#include <utility>

#include "core/cpu_info.h"
#include "core/thread_pool.h"

namespace puna::bindings {
namespace {

ElementType element_type(const Py_buffer& buffer) {
  const char* format = buffer.format == nullptr ? "B" : buffer.format;
  while (*format != '\0' && std::strchr("@=<", *format) != nullptr) ++format;  // this machine is little-endian
  if (std::strlen(format) != 1) return ElementType::other;
  const bool is_signed = std::strchr("bhilqn", *format) != nullptr;
  const bool is_unsigned = std::strchr("BHILQN", *format) != nullptr;
  switch (*format) {
    case 'f':
      return ElementType::f32;
    case 'e':
      return ElementType::f16;
    default:
      if (is_signed && buffer.itemsize == 1) return ElementType::i8;
      if (is_signed && buffer.itemsize == 4) return ElementType::i32;
      if (is_signed && buffer.itemsize == 8) return ElementType::i64;
      if (is_unsigned && buffer.itemsize == 1) return ElementType::u8;
      if (is_unsigned && buffer.itemsize == 4) return ElementType::u32;
      return ElementType::other;
  }
}

bool is_bfloat16(nb::handle object) {
  if (!nb::hasattr(object, "dtype")) return false;
  const nb::object dtype = object.attr("dtype");
  // NumPy computes names in Python, at some microseconds each, and a step has a dozen arrays; kinds are at hand.
  const nb::object kind = nb::getattr(dtype, "kind", nb::none());
  if (!nb::isinstance<nb::str>(kind) || !kind.equal(nb::str("V"))) return false;
  return nb::str(dtype.attr("name")).equal(nb::str("bfloat16"));
}

}  // namespace

Array::Array(nb::handle object, const std::string& name, Access access) {
  nb::object held = nb::borrow(object);
  const bool bfloat16 = is_bfloat16(object);  // which the buffer protocol has no letter for
  if (bfloat16) held = object.attr("view")("uint16");
  if (!PyObject_CheckBuffer(held.ptr())) {
    const std::string type = nb::str(nb::type_name(object.type())).c_str();
    throw nb::type_error((name + " must be an array, got " + type).c_str());
  }
  const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (access == Access::write ? PyBUF_WRITABLE : 0);
  if (PyObject_GetBuffer(held.ptr(), &buffer_, flags) != 0) {
    PyErr_Clear();
    buffer_.obj = nullptr;
    const char* wanted = access == Access::write ? "contiguous and writable" : "contiguous";
    throw nb::value_error((name + " must be C-" + wanted).c_str());
  }
  view_.data = static_cast<uint8_t*>(buffer_.buf);
  view_.type = bfloat16 ? ElementType::bf16 : element_type(buffer_);
  view_.shape.assign(buffer_.shape, buffer_.shape + buffer_.ndim);
  if (reinterpret_cast<uintptr_t>(view_.data) % static_cast<uintptr_t>(element_bytes(view_.type)) != 0) {
    PyBuffer_Release(&buffer_);
    throw nb::value_error((name + " must be aligned to its elements").c_str());
  }
}

Array::~Array() {
  if (buffer_.obj != nullptr) PyBuffer_Release(&buffer_);
}

Array::Array(Array&& other) noexcept : buffer_(other.buffer_), view_(std::move(other.view_)) {
  other.buffer_.obj = nullptr;
}

const ArrayView& expect(const Array& array, const std::string& name, ElementType type, size_t dimensions) {
  const ArrayView& view = array.view();
  if (view.type != type) {
    throw nb::type_error((name + " must be " + element_name(type) + ", got " + element_name(view.type)).c_str());
  }
  if (view.shape.size() != dimensions) {
    throw nb::value_error((name + " must have " + std::to_string(dimensions) + " dimensions, got shape " +
                           shape_text(view.shape)).c_str());
  }
  return view;
}

int thread_count(nb::handle threads) {
  if (threads.is_none()) return cpu_info().default_threads;
  int count = 0;
  if (PyBool_Check(threads.ptr()) || !nb::try_cast(threads, count)) {
    throw nb::type_error("threads must be a number or None");
  }
  if (count < 1 || count > kMaxThreads) {
    throw nb::value_error(
        ("threads must be 1 to " + std::to_string(kMaxThreads) + ", got " + std::to_string(count)).c_str());
  }
  return count;
}

}  // namespace puna::bindings

NB_MODULE(_native, m) {
  namespace nb = nanobind;
  m.doc() = "Kernels, packed weights and programs of Puna.";
  // Whatever is alive when the interpreter ends (a thread's results, the objects of an error on its way out) goes with
  // the process; a person at a terminal must not read about it.
  nb::set_leak_warnings(false);
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const std::system_error& error) {
      if (error.code().category() != std::generic_category()) throw;
      const std::string what = error.what(), reason = ": " + error.code().message();
      const std::string path = what.ends_with(reason) ? what.substr(0, what.size() - reason.size()) : what;
      const nb::tuple arguments = nb::make_tuple(error.code().value(), error.code().message(), path);
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });
  puna::bindings::bind_machine(m);
  puna::bindings::bind_weights(m);
  puna::bindings::bind_program(m);
}
