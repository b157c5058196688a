#pragma once
#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

namespace rlhf::simt {

/// One thread's cp.async operations: issued, committed in groups, landed in order by waits.
class AsyncCopies {
 public:
  static constexpr int kBytes = 16;
  static constexpr int kPoison = 0xff;  // NaN as bfloat16, half and float32

  void issue(void* destination, const void* source, int validBytes) {
    std::memset(destination, kPoison, kBytes);
    open_.push_back({destination, source, validBytes});
  }

  void commit() {
    committed_.push_back(std::move(open_));
    open_.clear();
  }

  void wait(int pending) {
    while (static_cast<int>(committed_.size()) > pending) {
      for (const Copy& copy : committed_.front()) land(copy);
      committed_.pop_front();
    }
  }

  /// Whether a copy has been issued that no wait has covered.
  bool areOnTheirWay() const {
    return !open_.empty() || std::any_of(committed_.begin(), committed_.end(), [](const auto& group) { return !group.empty(); });
  }

  void clear() {
    open_.clear();
    committed_.clear();
  }

 private:
  struct Copy {
    void* destination;
    const void* source;
    int validBytes;
  };

  static void land(const Copy& copy) {
    std::memset(copy.destination, 0, kBytes);
    if (copy.validBytes > 0) std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.validBytes));
  }

  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> committed_;
};

}  // namespace rlhf::simt
