// What recorded cases cannot say: threads that meet, callers that share the pool, files that are cut.
#pragma once

#include <vector>

#include "case_file.h"

namespace puna::replay {

// Runs with 1, 2, 5 and 16 threads, barriers in between, from several callers at once.
bool exercise_pool();
// The programs of the cases, executed by several callers at once on the default variant.
bool exercise_programs(const std::vector<Case>& cases);
// A file that loses its end while it is mapped.
bool exercise_mapped_file();

}  // namespace puna::replay
