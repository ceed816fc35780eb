// BLAKE2bp, a cryptographic hash that four lanes of a vector register compute at once.
#pragma once

#include <array>
#include <cstdint>

namespace puna {

using Digest = std::array<uint8_t, 64>;

// The 64-byte BLAKE2bp digest of some bytes, without a key. Source: RFC 7693 for the compression; "BLAKE2: simpler,
// smaller, fast as MD5" (Aumasson, Neves, Wilcox-O'Hearn, Winnerlein 2013), section 2.10, for the tree: four leaves take
// blocks of 128 bytes in turn, a root hashes their digests.
Digest blake2bp(const uint8_t* data, int64_t bytes);

}  // namespace puna
