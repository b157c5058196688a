#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace rlhf {

/// Which pages of a key/value cache are in use, and by how many sequences.
class PagePool {
 public:
  explicit PagePool(int64_t pages);

  int64_t available() const { return static_cast<int64_t>(free_.size()); }
  /// A page that nobody uses; there must be one.
  int32_t take();
  /// One user more of a page that is in use.
  void share(int32_t page) { ++users_[static_cast<size_t>(page)]; }
  void release(int32_t page);

 private:
  std::vector<int32_t> free_;   // taken from the end
  std::vector<int32_t> users_;  // of each page
};

}  // namespace rlhf
