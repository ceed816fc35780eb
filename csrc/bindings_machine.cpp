// Variants, the machine, mapped files.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "core/cpu_features.h"
#include "core/cpu_info.h"
#include "core/limits.h"
#include "core/mapped_file.h"
#include "core/variants.h"

namespace puna::bindings {
namespace {

nb::dict cpu_info_dict(const std::string& root) {
  const CpuFeatures& features = cpu_features();
  const CpuInfo info = read_cpu_info(root);
  nb::dict result;
  result["vendor"] = features.vendor;
  result["model"] = features.model;
  result["features"] = features.names;
  result["affinity"] = info.affinity;
  result["physical_cores"] = info.physical_cores;
  result["cpu_quota"] = info.cpu_quota;
  result["memory_limit"] = info.memory_limit;
  result["memory_total"] = info.memory_total;
  result["default_threads"] = info.default_threads;
  return result;
}

nb::dict limits_dict(double seconds, nb::handle threads) {
  const int count = thread_count(threads);
  const KernelTable& kernels = kernels_of(default_variant());
  Limits limits;
  {
    const nb::gil_scoped_release release;
    limits = measure_limits(kernels, seconds, count);
  }
  nb::dict result;
  result["read_gbps"] = limits.read_gbps;
  result["f32_gflops"] = limits.f32_gflops;
  result["int8_gops"] = limits.int8_gops;
  return result;
}

int get_file_buffer(PyObject* self, Py_buffer* buffer, int flags) {
  const MappedFile* file = nb::inst_ptr<MappedFile>(nb::handle(self));
  return PyBuffer_FillInfo(buffer, self, const_cast<uint8_t*>(file->data()), file->size(), 1, flags);
}

PyType_Slot file_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_file_buffer)}, {0, nullptr}};

}  // namespace

void bind_machine(nb::module_& m) {
  m.def("compiled_variants", &compiled_variants);
  m.def("supported_variants", &supported_variants);
  m.def("default_variant", &default_variant);
  m.def("cpu_info", &cpu_info_dict, nb::arg("root") = "/");
  m.def("measure_limits", &limits_dict, nb::arg("seconds") = 2.0, nb::arg("threads") = nb::none());

  nb::class_<MappedFile>(m, "MappedFile", nb::type_slots(file_slots))
      .def("__init__",
           [](MappedFile* self, nb::handle path) {
             const nb::object encoded =
                 nb::steal(PyOS_FSPath(path.ptr()));  // os.PathLike or str; TypeError otherwise
             if (!encoded.is_valid()) throw nb::python_error();
             PyObject* bytes = nullptr;
             if (!PyUnicode_FSConverter(encoded.ptr(), &bytes)) throw nb::python_error();
             const nb::object owned = nb::steal(bytes);
             new (self) MappedFile(PyBytes_AsString(bytes));
           },
           nb::arg("path"))
      .def_prop_ro("data",
                   [](nb::handle self) {
                     nb::object view = nb::steal(PyMemoryView_FromObject(self.ptr()));
                     if (!view.is_valid()) throw nb::python_error();
                     return view;
                   })
      .def("release", [](const MappedFile& self) { self.release(); })
      .def_prop_ro("size", &MappedFile::size)
      .def_prop_ro("path",
                   [](const MappedFile& self) {
                     return nb::steal(PyUnicode_DecodeFSDefault(self.path().c_str()));
                   })
      .def_prop_ro("damaged", &MappedFile::is_damaged);
}

}  // namespace puna::bindings
