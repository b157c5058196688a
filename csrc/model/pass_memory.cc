#include "model/pass_memory.h"

#include <algorithm>
#include <utility>

namespace rlhf {

DeviceMemory MemoryPool::borrow(size_t bytes) {
  const auto smaller = [](const DeviceMemory& a, const DeviceMemory& b) { return a.bytes() < b.bytes(); };
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
    bytes_ -= largest->bytes();
    free_.erase(largest);
  }
  DeviceMemory block(engine_, use_, bytes, what_);
  bytes_ += bytes;
  return block;
}

void MemoryPool::giveBack(DeviceMemory block) {
  if (block.data()) free_.push_back(std::move(block));
}

}  // namespace rlhf
