// AMX machines: AVX-512's vectors, and tiles. With PUNA_EMULATED_TILES the tiles are emulated.
#pragma once

#include "avx512.h"
#include "tiles.h"

#define PUNA_HAS_TILES
