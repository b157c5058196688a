#pragma once
#include <cstddef>
#include <cstdint>

namespace rlhf {

inline constexpr size_t kAlignment = 64;  // one cache line, one AVX-512 register
constexpr size_t alignUp(size_t bytes, size_t alignment = kAlignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

/// Lays named buffers out in one block before any memory exists. `reserve` returns the offset at which the buffer will lie.
/// `mark`/`release` give memory back to later reservations whose lifetimes do not overlap (a stack).
class ArenaPlan {
 public:
  size_t reserve(size_t bytes) {
    const size_t offset = top_;
    top_ += alignUp(bytes);
    if (top_ > peak_) peak_ = top_;
    return offset;
  }
  size_t mark() const { return top_; }
  void release(size_t mark) { top_ = mark; }
  size_t bytes() const { return peak_; }

 private:
  size_t top_ = 0;
  size_t peak_ = 0;
};

}  // namespace rlhf
