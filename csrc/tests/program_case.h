// Programs of recorded cases.
#pragma once

#include "case_file.h"
#include "core/kernel_table.h"

namespace puna::replay {

// Executes the program of a case with this number of threads; whether all outputs, and the inputs that it may write to,
// are as recorded.
bool run_program(const Case& recorded, const KernelTable& kernels, int threads);

}  // namespace puna::replay
