// Low-rank adapters: what a step adds to the products of some of its requests, y += scale * (B (A x)).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "../quant/packed.h"

namespace puna {

// The update of one product: A [rank, inputs], B [outputs, rank]. Of a look-up by token A is [vocabulary, rank], and its
// row takes the place of A x.
struct LowRank {
  std::shared_ptr<const PackedMatrix> a, b;
  float scale = 1.0f;
};

// Updates by layer (-1: outside of layers) and by the number of the product within it.
inline constexpr int64_t kMaxAdapterTargets = 16;

// Filled once, then read by any number of programs.
class Adapter {
 public:
  // Both matrices must take float32 activations. Throws std::invalid_argument.
  void set(int64_t layer, int64_t target, LowRank update);

  const LowRank* find(int64_t layer, int64_t target) const;  // null where the product is left as it is
  int64_t rank() const { return rank_; }                     // the largest of its updates
  int64_t bytes() const { return bytes_; }

 private:
  std::vector<LowRank> updates_;
  int64_t rank_ = 0, bytes_ = 0;
};

// Which adapters the slots hold that a step names. Any thread may change a slot: a step that has begun keeps what it was
// given.
class AdapterSlots {
 public:
  // Throws std::invalid_argument.
  explicit AdapterSlots(int64_t count);

  int64_t count() const { return static_cast<int64_t>(slots_.size()); }
  void set(int64_t slot, std::shared_ptr<const Adapter> adapter);  // null empties it
  std::shared_ptr<const Adapter> get(int64_t slot) const;          // null where it is empty or does not exist

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<const Adapter>> slots_;
};

}  // namespace puna
