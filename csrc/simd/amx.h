// AMX machines: the vocabulary is AVX-512's. The tile products will be added beside it.
#pragma once

#include "avx512.h"
