#include "bindings.h"
namespace puna::bindings {
void bind_program(nb::module_&) {}
}
