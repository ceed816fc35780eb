// What a quantizer chose for one block, before the format's header in this directory arranges it as bytes.
#pragma once

#include <stdint.h>

namespace puna {

inline constexpr int kMostBlockElements = 256, kMostBlockGroups = 16;

struct BlockParts {
  uint16_t d, m;                        // float16: the scale; the offset, or the scale of the mins
  int8_t scales[kMostBlockGroups];      // of the groups of a super-block
  uint8_t mins[kMostBlockGroups];
  uint8_t codes[kMostBlockElements];    // as stored, from 0 on; Q8_0: the bits of signed codes
};

}  // namespace puna
