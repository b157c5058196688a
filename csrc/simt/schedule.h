#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace rlhf::simt {

/// Which thread of a block runs next, in the manner of PCT (Burckhardt et al., ASPLOS 2010): every warp has a random
/// priority, the highest that can run does, and at random moments it falls behind all others. A warp that runs far ahead
/// of the rest, or lags far behind, is what missing barriers need to show; uniformly random choices rarely give it.
/// Seed 0 is the fixed order (lowest warp first, lowest lane first), for debugging.
class Schedule {
 public:
  explicit Schedule(uint64_t seed) : random_(seed * 0x9E3779B97F4A7C15ull + 1), isFixed_(seed == 0) {}

  /// Begins a block of `warps` warps.
  void startBlock(int warps) {
    order_.resize(warps);
    std::iota(order_.begin(), order_.end(), 0);
    firstLane_ = 0;
    if (isFixed_) return;
    shuffle(order_);
    firstLane_ = static_cast<int>(next() % 32);
  }

  /// The thread to run, out of those whose bit is set in its warp's word; −1 where no bit is.
  int pick(const std::vector<uint32_t>& runnable) {
    for (size_t rank = 0; rank < order_.size(); ++rank) {
      const int warp = order_[rank];
      if (!runnable[warp]) continue;
      const int lane = (std::countr_zero(std::rotr(runnable[warp], firstLane_)) + firstLane_) % 32;
      if (!isFixed_ && next() % kPicksPerDemotion == 0) demote(rank);
      return warp * 32 + lane;
    }
    return -1;
  }

  /// True once in `oneIn` times, at random; never in the fixed order.
  bool chance(uint64_t oneIn) { return !isFixed_ && next() % oneIn == 0; }

  /// A number below `count`, at random; 0 in the fixed order.
  size_t below(size_t count) { return isFixed_ ? 0 : next() % count; }

  /// Puts a warp behind all others.
  void demoteWarp(int warp) { demote(static_cast<size_t>(std::ranges::find(order_, warp) - order_.begin())); }

  /// The order in which the blocks of a grid run: nothing may rely on the one by index.
  std::vector<uint32_t> blockOrder(uint32_t count) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (!isFixed_) shuffle(order);
    return order;
  }

 private:
  static constexpr uint64_t kPicksPerDemotion = 256;

  uint64_t next() {  // xorshift64
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next() % i]);
  }

  void demote(size_t rank) { std::rotate(order_.begin() + rank, order_.begin() + rank + 1, order_.end()); }

  uint64_t random_;
  bool isFixed_;
  std::vector<int> order_;  // warps, highest priority first
  int firstLane_ = 0;
};

}  // namespace rlhf::simt
