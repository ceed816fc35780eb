#include "adapter.h"

#include <algorithm>
#include <cmath>

#include "text.h"

namespace puna {
namespace {

constexpr int64_t kMaxLayers = 1 << 16, kMaxSlots = 1 << 16;

}  // namespace

void Adapter::set(int64_t layer, int64_t target, LowRank update) {
  if (layer < -1 || layer >= kMaxLayers) invalid("layer must be -1 to ", kMaxLayers - 1, ", got ", layer);
  if (target < 0 || target >= kMaxAdapterTargets) {
    invalid("target must be 0 to ", kMaxAdapterTargets - 1, ", got ", target);
  }
  for (const PackedMatrix* matrix : {update.a.get(), update.b.get()}) {
    if (matrix == nullptr) invalid("an update has two matrices");
    if (matrix->partner() != Partner::f32) invalid("the matrices of an adapter must take float32 activations");
  }
  if (!std::isfinite(update.scale)) invalid("the scale of an update must be a finite float32");
  const size_t index = static_cast<size_t>((layer + 1) * kMaxAdapterTargets + target);
  if (updates_.size() <= index) updates_.resize(index + 1);
  if (updates_[index].a != nullptr) invalid("layer ", layer, " has an update of target ", target, " already");
  rank_ = std::max(rank_, update.b->cols());
  bytes_ += update.a->bytes() + update.b->bytes();
  updates_[index] = std::move(update);
}

const LowRank* Adapter::find(int64_t layer, int64_t target) const {
  const size_t index = static_cast<size_t>((layer + 1) * kMaxAdapterTargets + target);
  return index < updates_.size() && updates_[index].a != nullptr ? &updates_[index] : nullptr;
}

AdapterSlots::AdapterSlots(int64_t count) {
  if (count < 1 || count > kMaxSlots) invalid("there are 1 to ", kMaxSlots, " adapter slots, not ", count);
  slots_.resize(static_cast<size_t>(count));
}

void AdapterSlots::set(int64_t slot, std::shared_ptr<const Adapter> adapter) {
  if (slot < 0 || slot >= count()) invalid("slot must be 0 to ", count() - 1, ", got ", slot);
  const std::lock_guard lock(mutex_);
  slots_[static_cast<size_t>(slot)].swap(adapter);  // what was there goes when the lock is open again
}

std::shared_ptr<const Adapter> AdapterSlots::get(int64_t slot) const {
  const std::lock_guard lock(mutex_);
  return slot < 0 || slot >= count() ? nullptr : slots_[static_cast<size_t>(slot)];
}

}  // namespace puna
