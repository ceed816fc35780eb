#include "worker.h"

namespace puna {

template <typename F>
void Division::each_level(F f) const {
  for (int64_t rest = work_.units; rest > 0;) {
    const int64_t even = rest / (2 * threads_);
    const int64_t chunk = std::max<int64_t>(1, std::min(std::max(even, work_.least), work_.most));
    int64_t count = std::min(threads_, (rest + chunk - 1) / chunk);
    // As long as the limit holds, all levels are alike.
    if (even > work_.most) count = std::max(count, (rest - 2 * threads_ * chunk) / chunk);
    if (!f(rest, chunk, count)) return;
    rest -= count * chunk;
  }
}

Division::Division(const Work& work, int threads) : work_(work), threads_(threads) {
  if (threads == 1) {
    pieces_ = work.units > 0 ? 1 : 0;
    return;
  }
  // However much there is, the number of pieces stays below kMaxPieces.
  work_.least = std::max(work.least, work.units >> 18);
  work_.most = std::max(work.most, work_.least);
  each_level([&](int64_t, int64_t, int64_t count) {
    pieces_ += count;
    return true;
  });
}

Range Division::piece(int64_t index) const {
  if (pieces_ == 1) return {0, work_.units};
  Range range = {};
  each_level([&](int64_t rest, int64_t chunk, int64_t count) {
    if (index >= count) {
      index -= count;
      return true;
    }
    range.begin = work_.units - rest + index * chunk;
    range.end = std::min(range.begin + chunk, work_.units);
    return false;
  });
  return range;
}

}  // namespace puna
