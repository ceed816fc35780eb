// What recorded cases cannot say: threads that take pieces, callers that share the pool, files that are cut.
#pragma once

#include <vector>

#include "case_file.h"

namespace puna::replay {

// Stages and barriers with 1, 2, 5 and 16 threads, stages from several callers at once.
bool exercise_pool();
// That the pieces of work are all of it.
bool exercise_division();
// The programs of the cases, executed by several callers at once on the default variant.
bool exercise_programs(const std::vector<Case>& cases);
// A file that loses its end while it is mapped.
bool exercise_mapped_file();

}  // namespace puna::replay
