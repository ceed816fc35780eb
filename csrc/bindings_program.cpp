// Programs: fields from keyword arguments, inputs and outputs from arrays.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>

#include "bindings.h"
#include "core/adapter.h"
#include "core/program.h"
#include "core/text.h"
#include "core/variants.h"

namespace puna::bindings {
namespace {

// A Python value as a field: bool, int, float, str, a sequence of ints, or a float32 array. NumPy scalars count as the
// numbers they are.
FieldValue field_value(const std::string& name, nb::handle value) {
  if (PyBool_Check(value.ptr())) return value.ptr() == Py_True;
  if (PyUnicode_Check(value.ptr())) return nb::cast<std::string>(value);
  if (PyFloat_Check(value.ptr())) return PyFloat_AsDouble(value.ptr());
  if (PyIndex_Check(value.ptr()) && !nb::hasattr(value, "shape")) {
    int64_t integer = 0;
    if (!nb::try_cast(value, integer)) invalid("field '", name, "' does not fit into 64 bits");
    return integer;
  }
  if (PyList_Check(value.ptr()) || PyTuple_Check(value.ptr())) {
    std::vector<int64_t> integers;
    for (nb::handle item : nb::borrow<nb::sequence>(value)) {
      int64_t integer = 0;
      if (PyBool_Check(item.ptr()) || !PyIndex_Check(item.ptr()) || !nb::try_cast(item, integer)) {
        invalid("field '", name, "' must be a list of integers");
      }
      integers.push_back(integer);
    }
    return integers;
  }
  if (nb::hasattr(value, "shape") && nb::len(nb::borrow<nb::object>(value.attr("shape"))) == 0) {
    return field_value(name, value.attr("item")());  // a NumPy scalar
  }
  if (PyObject_CheckBuffer(value.ptr())) {
    const Array array(value, "field '" + name + "'");
    if (array.view().type != ElementType::f32 || array.view().shape.size() != 1) {
      invalid("field '", name, "' must be a float32 array of one dimension");
    }
    const float* values = array.view().as<const float>();
    return std::vector<float>(values, values + array.view().shape[0]);
  }
  invalid("field '", name, "' must be a number, a string, True or False, a list of integers or a float32 array");
}

// Calls f(name, value) for every entry of a mapping.
template <typename F>
void for_items(nb::handle mapping, const char* what, F f) {
  const nb::object items = nb::steal(PyMapping_Items(mapping.ptr()));
  if (!items.is_valid()) {
    PyErr_Clear();
    throw nb::type_error((std::string(what) + " must be a mapping").c_str());
  }
  for (nb::handle item : items) {
    if (!PyUnicode_Check(item[0].ptr())) throw nb::type_error((std::string(what) + " must be named by strings").c_str());
    f(nb::cast<std::string>(item[0]), nb::object(item[1]));
  }
}

Fields fields_of(nb::handle values, const char* what) {
  Fields fields;
  for_items(values, what,
            [&](const std::string& name, const nb::object& value) { fields.emplace(name, field_value(name, value)); });
  return fields;
}

int64_t add_weight(Program& program, nb::handle weight) {
  if (nb::isinstance<PackedMatrix>(weight)) return program.weight(nb::cast<std::shared_ptr<PackedMatrix>>(weight));
  const Array array(weight, "weight");
  const ArrayView& view = expect(array, "weight", ElementType::f32, 1);
  const float* values = view.as<const float>();
  return program.weight(std::vector<float>(values, values + view.shape[0]));
}

void execute(Program& program, nb::object inputs, nb::sequence outputs, nb::handle threads) {
  const int count = thread_count(threads);
  std::vector<Array> held;
  Inputs by_name;
  std::vector<ArrayView> targets;
  for_items(inputs, "inputs", [&](const std::string& name, const nb::object& value) {
    const Access access = name == "kv_blocks" || name == "kv_scales" ? Access::write : Access::read;
    by_name.emplace(name, held.emplace_back(value, "input '" + name + "'", access).view());
  });
  for (nb::handle output : outputs) {
    const std::string name = "output " + std::to_string(targets.size());
    targets.push_back(held.emplace_back(output, name, Access::write).view());
  }
  const nb::gil_scoped_release release;
  program.execute(by_name, targets, count);
}

void set_update(Adapter& adapter, int64_t layer, int64_t target, std::shared_ptr<PackedMatrix> a,
                std::shared_ptr<PackedMatrix> b, float scale) {
  adapter.set(layer, target, {std::move(a), std::move(b), scale});
}

nb::list trace_records(Program& program) {
  std::vector<TraceRecord> records;
  {
    const nb::gil_scoped_release release;  // an execution may be under way, and end only with the lock
    records = program.trace_records();
  }
  nb::list result;
  for (const TraceRecord& record : records) {
    nb::dict item;
    item["op"] = record.op;
    item["name"] = record.name;
    item["layer"] = record.layer;
    item["seconds"] = record.seconds;
    item["waited"] = record.waited;
    item["bytes"] = record.cost.bytes;
    item["flops"] = record.cost.flops;
    result.append(item);
  }
  return result;
}

}  // namespace

void bind_program(nb::module_& m) {
  nb::class_<Adapter>(m, "Adapter")
      .def(nb::init<>())
      .def("set", &set_update, nb::arg("layer"), nb::arg("target"), nb::arg("a"), nb::arg("b"), nb::arg("scale"))
      .def_prop_ro("rank", &Adapter::rank)
      .def_prop_ro("nbytes", &Adapter::bytes);
  nb::class_<AdapterSlots>(m, "AdapterSlots")
      .def(nb::init<int64_t>(), nb::arg("count"))
      .def_prop_ro("count", &AdapterSlots::count)
      .def("set",
           [](AdapterSlots& self, int64_t slot, std::shared_ptr<Adapter> adapter) { self.set(slot, std::move(adapter)); },
           nb::arg("slot"), nb::arg("adapter").none());
  nb::class_<Program>(m, "Program")
      .def("__init__",
           [](Program* self, const std::string& variant, int group) { new (self) Program(kernels_of(variant), group); },
           nb::arg("variant"), nb::arg("group") = 0)
      .def_prop_ro("variant", &Program::variant)
      .def("buffer", &Program::buffer, nb::arg("rows"), nb::arg("row_bytes"))
      .def("weight", &add_weight, nb::arg("weight"))
      .def("rope",
           [](Program& self, const std::string& kind, nb::object parameters) {
             return self.rope(kind, fields_of(parameters, "parameters"));
           },
           nb::arg("kind"), nb::arg("parameters"))
      .def("adapters",
           [](Program& self, std::shared_ptr<AdapterSlots> slots) { self.adapters(std::move(slots)); }, nb::arg("slots"))
      .def("begin_sub", &Program::begin_sub, nb::arg("name"))
      .def("end_sub", &Program::end_sub)
      .def("emit",
           [](Program& self, const std::string& op, nb::kwargs fields) { return self.emit(op, fields_of(fields, "fields")); },
           nb::arg("op"), nb::arg("fields"))
      .def("finish", &Program::finish)
      .def("execute", &execute, nb::arg("inputs"), nb::arg("outputs"), nb::arg("threads") = nb::none())
      .def("trace", &Program::trace, nb::arg("is_on"), nb::call_guard<nb::gil_scoped_release>())
      .def("trace_records", &trace_records);
}

}  // namespace puna::bindings
