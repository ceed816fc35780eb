// Formats, packed matrices, and the kernels by themselves for tests.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>

#include "bindings.h"
#include "core/blake2.h"
#include "core/mapped_file.h"
#include "core/memory.h"
#include "core/product.h"
#include "core/quantize.h"
#include "core/text.h"
#include "core/thread_pool.h"
#include "core/variants.h"
#include "core/weights.h"
#include "quant/a8.h"

namespace puna::bindings {
namespace {

const char* partner_name(Partner partner) { return partner == Partner::a8 ? "a8" : "f32"; }

const Format& format_called(const std::string& name) {
  const Format* format = find_format(name.c_str());
  if (format != nullptr) return *format;
  std::string names;
  for (const Format& known : formats()) names += (names.empty() ? "" : ", ") + std::string(known.name);
  invalid("unknown format '", name, "'; there is: ", names);
}

nb::tuple format_info(const std::string& name) {
  const Format& format = format_called(name);
  return nb::make_tuple(format.block_elements, format.block_bytes, partner_name(partner_of(format.kernel)));
}

nb::object dequantize(const std::string& name, nb::handle data, int64_t cols) {
  const Format& format = format_called(name);
  const Array array(data, "data");
  const ArrayView& view = array.view();
  if (view.shape.size() != 2) invalid("data must have 2 dimensions, got shape ", shape_text(view.shape));
  if (cols <= 0 || cols % format.block_elements != 0) {
    invalid("cols must be a positive multiple of ", format.block_elements, " for ", name, ", got ", cols);
  }
  const int64_t rows = view.shape[0], blocks = cols / format.block_elements;
  if (cols > array.bytes() * format.block_elements || array.bytes() != rows * blocks * format.block_bytes) {
    invalid("data has ", array.bytes(), " bytes; ", rows, " rows of ", cols, " values in ", name, " take ", blocks,
            " blocks of ", format.block_bytes, " bytes each");
  }
  std::vector<float> out(static_cast<size_t>(rows * cols));
  {
    const nb::gil_scoped_release release;
    for (int64_t row = 0; row < rows; ++row) {
      format.dequantize(view.data + row * blocks * format.block_bytes, cols, out.data() + row * cols);
    }
  }
  return to_numpy(std::move(out), {rows, cols});
}

nb::object quantize(const std::string& name, nb::handle x, nb::handle importance, int64_t first_row,
                    const std::string& variant, nb::handle threads) {
  const Format& format = format_called(name);
  const KernelTable& kernels = kernels_of(variant.empty() ? default_variant() : variant);
  const int count = thread_count(threads);
  const Array array(x, "x");
  const ArrayView& view = expect(array, "x", ElementType::f32, 2);
  const int64_t rows = view.shape[0], cols = view.shape[1];
  std::optional<Array> columns;
  if (!importance.is_none()) {
    columns.emplace(importance, "importance");
    if (expect(*columns, "importance", ElementType::f32, 1).shape[0] != cols) {
      invalid("importance has ", columns->view().shape[0], " values, x has ", cols, " columns");
    }
  }
  std::vector<uint8_t> out;
  {
    const nb::gil_scoped_release release;
    out = quantize_rows(kernels, format, view.as<float>(), rows, cols, columns ? columns->view().as<float>() : nullptr,
                        first_row, count);
  }
  return to_numpy(std::move(out), {rows, cols / format.block_elements * format.block_bytes});
}

bool is_full_precision(const std::string& precision) {
  if (precision == "auto" || precision == "float32") return precision == "float32";
  invalid("precision must be 'auto' or 'float32', got '", precision, "'");
}

std::shared_ptr<PackedMatrix> pack(const std::string& name, nb::handle data, int64_t rows, int64_t cols,
                                   const std::string& precision, nb::handle threads) {
  const bool full_precision = is_full_precision(precision);
  const Format& format = format_called(name);
  const int count = thread_count(threads);
  const Array array(data, "data");
  const nb::gil_scoped_release release;
  return pack_matrix(format, array.view().data, array.bytes(), rows, cols, full_precision, count);
}

std::shared_ptr<PackedMatrix> map_packed(const std::string& name, const std::shared_ptr<MappedFile>& file,
                                         int64_t offset, int64_t rows, int64_t cols, const std::string& precision) {
  const bool full_precision = is_full_precision(precision);
  if (offset < 0 || offset > file->size()) invalid("offset ", offset, " is not in the ", file->size(), " bytes");
  const std::shared_ptr<const uint8_t> packed(file, file->data() + offset);
  return std::make_shared<PackedMatrix>(format_called(name), rows, cols, full_precision, packed,
                                        file->size() - offset);
}

nb::bytes bytes_of(const Digest& digest) { return nb::bytes(digest.data(), digest.size()); }

nb::bytes blake2bp_bytes(nb::handle data) {
  const Array array(data, "data");
  Digest digest;
  {
    const nb::gil_scoped_release release;
    digest = blake2bp(array.view().data, array.bytes());
  }
  return bytes_of(digest);
}

int get_matrix_buffer(PyObject* self, Py_buffer* buffer, int flags) {
  const PackedMatrix* matrix = nb::inst_ptr<PackedMatrix>(nb::handle(self));
  return PyBuffer_FillInfo(buffer, self, const_cast<uint8_t*>(matrix->data()), matrix->bytes(), 1, flags);
}

PyType_Slot matrix_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_matrix_buffer)}, {0, nullptr}};

nb::object rows_f32(const PackedMatrix& matrix, nb::handle ids) {
  const Array array(ids, "ids");
  const ArrayView& view = expect(array, "ids", ElementType::i64, 1);
  const int64_t count = view.shape[0];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = view.as<int64_t>()[i];
    if (id < 0 || id >= matrix.rows()) invalid("ids[", i, "] is ", id, ", the matrix has ", matrix.rows(), " rows");
  }
  std::vector<float> out(static_cast<size_t>(count * matrix.cols()));
  for (int64_t i = 0; i < count; ++i) matrix.row_f32(view.as<int64_t>()[i], out.data() + i * matrix.cols());
  return to_numpy(std::move(out), {count, matrix.cols()});
}

nb::tuple quantize_a8(nb::handle x, const std::string& variant) {
  const KernelTable& kernels = kernels_of(variant);
  const Array array(x, "x");
  const ArrayView& view = expect(array, "x", ElementType::f32, 2);
  const int64_t rows = view.shape[0], cols = view.shape[1];
  if (cols % kA8BlockElements != 0) invalid("x must have a multiple of 32 columns, got ", cols);
  Memory a8;
  a8.reserve((rows + 15) / 16 * 16 * a8_row_bytes(cols));
  {
    const FlushSubnormals flush;
    kernels.quantize_a8(view.as<float>(), cols, 0, rows, cols, a8.data());
  }
  const int64_t blocks = cols / kA8BlockElements;
  std::vector<int8_t> codes(static_cast<size_t>(rows * cols));
  std::vector<float> scales(static_cast<size_t>(rows * blocks));
  std::vector<float> sums(static_cast<size_t>(rows * blocks));
  for (int64_t i = 0; i < rows * blocks; ++i) {
    const uint8_t* block = a8.data() + i / blocks * a8_row_bytes(cols) + i % blocks * kA8BlockBytes;
    std::memcpy(codes.data() + i * kA8BlockElements, block, kA8BlockElements);
    std::memcpy(scales.data() + i, block + kA8Scale, sizeof(float));
    std::memcpy(sums.data() + i, block + kA8ScaledSum, sizeof(float));
  }
  return nb::make_tuple(to_numpy(std::move(codes), {rows, cols}), to_numpy(std::move(scales), {rows, blocks}),
                        to_numpy(std::move(sums), {rows, blocks}));
}

nb::object matmul(nb::list matrices, nb::handle x, const std::string& variant, nb::handle threads, bool two_terms) {
  const KernelTable& kernels = kernels_of(variant);
  const int count = thread_count(threads);
  const Array array(x, "x");
  const ArrayView& view = expect(array, "x", ElementType::f32, 2);
  std::vector<std::shared_ptr<PackedMatrix>> held;
  std::vector<const PackedMatrix*> pointers;
  int64_t width = 0;
  for (nb::handle matrix : matrices) {
    if (!nb::isinstance<PackedMatrix>(matrix)) throw nb::type_error("matrices must be a list of PackedMatrix");
    held.push_back(nb::cast<std::shared_ptr<PackedMatrix>>(matrix));
    pointers.push_back(held.back().get());
    width += held.back()->rows();
  }
  if (!held.empty() && held.front()->cols() != view.shape[1]) {
    invalid("x has ", view.shape[1], " columns, the matrices have ", held.front()->cols());
  }
  std::vector<float> out;
  {
    const nb::gil_scoped_release release;
    out = multiply(kernels, pointers, view.as<float>(), view.shape[0], count, two_terms);
  }
  return to_numpy(std::move(out), {view.shape[0], width});
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::list names;
  for (const Format& format : formats()) names.append(format.name);
  m.attr("FORMATS") = nb::tuple(names);
  m.def("format_info", &format_info, nb::arg("format"));
  m.def("dequantize", &dequantize, nb::arg("format"), nb::arg("data"), nb::arg("cols"));
  m.def("quantize", &quantize, nb::arg("format"), nb::arg("x"), nb::arg("importance") = nb::none(),
        nb::arg("first_row") = 0, nb::arg("variant") = "", nb::arg("threads") = nb::none());
  m.def("a8_row_bytes",
        [](int64_t cols) {
          if (cols <= 0 || cols > (int64_t{1} << 31)) invalid("cols must be 1 to 2**31, got ", cols);
          return a8_row_bytes(cols);
        },
        nb::arg("cols"));
  m.def("quantize_a8", &quantize_a8, nb::arg("x"), nb::arg("variant"));
  m.def("matmul", &matmul, nb::arg("matrices"), nb::arg("x"), nb::arg("variant"), nb::arg("threads") = nb::none(),
        nb::arg("two_terms") = false);

  m.attr("PACKED_LAYOUT") = kPackedLayout;
  m.def("blake2bp", &blake2bp_bytes, nb::arg("data"));
  nb::class_<PackedMatrix>(m, "PackedMatrix", nb::type_slots(matrix_slots))
      .def(nb::new_(&pack), nb::arg("format"), nb::arg("data"), nb::arg("rows"), nb::arg("cols"),
           nb::arg("precision") = "auto", nb::arg("threads") = nb::none())
      .def_static("mapped", &map_packed, nb::arg("format"), nb::arg("file"), nb::arg("offset"), nb::arg("rows"),
                  nb::arg("cols"), nb::arg("precision") = "auto")
      .def_prop_ro("digest", [](const PackedMatrix& self) { return bytes_of(self.digest()); })
      .def_prop_ro("format", [](const PackedMatrix& self) { return self.format().name; })
      .def_prop_ro("rows", &PackedMatrix::rows)
      .def_prop_ro("cols", &PackedMatrix::cols)
      .def_prop_ro("nbytes", &PackedMatrix::bytes)
      .def_prop_ro("partner", [](const PackedMatrix& self) { return partner_name(self.partner()); })
      .def("rows_f32", &rows_f32, nb::arg("ids"));
}

}  // namespace puna::bindings
