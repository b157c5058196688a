#pragma once
#include <bit>
#include <cstddef>
#include <mutex>
#include <vector>

namespace rlhf {

/// Small blocks of device memory that nobody uses now, by their size, which is a power of two. Arrays that live for part of a step are
/// taken from here, since a GPU finishes all that is queued before it takes or gives memory. They are used in the order of one stream, so
/// that a block may be handed out while commands that were queued before still read it. What lies here counts as free: as many blocks as
/// were in use at a time, which is some per micro-batch.
class BlockCache {
 public:
  /// The size of block for `bytes`; 0 for what is too large to be kept.
  static size_t blockBytes(size_t bytes) {
    if (bytes > kLargest) return 0;
    return std::bit_ceil(bytes < kSmallest ? kSmallest : bytes);
  }

  /// A block of a size that blockBytes() gave; null where there is none.
  char* take(size_t blockBytes) {
    const std::lock_guard lock(mutex_);
    std::vector<char*>& blocks = free_[indexOf(blockBytes)];
    if (blocks.empty()) return nullptr;
    char* const block = blocks.back();
    blocks.pop_back();
    return block;
  }

  void keep(char* block, size_t blockBytes) {
    const std::lock_guard lock(mutex_);
    free_[indexOf(blockBytes)].push_back(block);
  }

  /// Hands every block to `release`.
  template <class Release>
  void empty(Release release) {
    for (std::vector<char*>& blocks : free_) {
      for (char* block : blocks) release(block);
      blocks.clear();
    }
  }

 private:
  static constexpr size_t kSmallest = 256, kLargest = size_t{1} << 20;
  static size_t indexOf(size_t blockBytes) { return static_cast<size_t>(std::countr_zero(blockBytes)); }

  std::mutex mutex_;
  std::vector<char*> free_[std::countr_zero(kLargest) + 1];
};

}  // namespace rlhf
