#include "model/pass_memory.h"

#include <algorithm>
#include <utility>

namespace rlhf {

namespace {

bool smaller(const DeviceMemory& a, const DeviceMemory& b) { return a.bytes() < b.bytes(); }

}  // namespace

DeviceMemory MemoryPool::borrow(size_t bytes, MemoryUse use, const char* what) {
  auto best = free_.end();
  for (auto block = free_.begin(); block != free_.end(); ++block)
    if (block->bytes() >= bytes && (best == free_.end() || block->bytes() < best->bytes())) best = block;
  if (best != free_.end()) {
    DeviceMemory block = std::move(*best);
    free_.erase(best);
    return block;
  }
  if (!free_.empty()) {
    engine_.synchronize();  // earlier commands may still use the block that goes
    const auto largest = std::max_element(free_.begin(), free_.end(), smaller);
    bytes_[static_cast<size_t>(largest->use())] -= largest->bytes();
    free_.erase(largest);
  }
  DeviceMemory block(engine_, use, bytes, what);
  bytes_[static_cast<size_t>(use)] += bytes;
  return block;
}

void MemoryPool::giveBack(DeviceMemory block) {
  if (block.data()) free_.push_back(std::move(block));
}

void MemoryPool::addBytes(MemoryBytes& byUse) const {
  for (size_t use = 0; use < kMemoryUses; ++use) byUse[use] += bytes_[use];
}

size_t MemoryPool::largestFree() const {
  const auto largest = std::max_element(free_.begin(), free_.end(), smaller);
  return largest == free_.end() ? 0 : largest->bytes();
}

}  // namespace rlhf
