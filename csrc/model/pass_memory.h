#pragma once
#include <memory>
#include <vector>

#include "model/engine.h"

namespace rlhf {

/// Memory blocks that passes borrow and give back, so that a training loop allocates only until its largest
/// pass has been seen.
class MemoryPool {
 public:
  MemoryPool(Engine& engine, MemoryUse use, const char* what) : engine_(engine), use_(use), what_(what) {}

  /// A block of at least `bytes`: the smallest free one that fits; else the largest free one is replaced by
  /// one that fits.
  DeviceMemory borrow(size_t bytes) { return borrow(bytes, use_, what_); }
  /// The same; a new block is counted as for this.
  DeviceMemory borrow(size_t bytes, MemoryUse use, const char* what);
  void giveBack(DeviceMemory block);
  void addBytes(MemoryBytes& byUse) const;  // of all blocks, lent ones included
  size_t largestFree() const;

 private:
  Engine& engine_;
  MemoryUse use_;
  const char* what_;
  std::vector<DeviceMemory> free_;
  MemoryBytes bytes_{};
};

/// What the passes of one model share. A pass may outlive its model, so each holds a reference.
struct PassMemory {
  explicit PassMemory(std::shared_ptr<Engine> sharedEngine)
      : engine(std::move(sharedEngine)),
        outputs(*engine, MemoryUse::Activations, "the outputs of a pass"),
        distributions(*engine, MemoryUse::Activations, "the hidden states of a reference pass"),
        activations(*engine, MemoryUse::Activations, "the activations of a pass"),
        logits(*engine, MemoryUse::Logits, "the logits of a pass") {}

  std::shared_ptr<Engine> engine;
  MemoryPool outputs;
  MemoryPool distributions;
  MemoryPool activations;  // and what generation needs: the two are not wanted at once
  MemoryPool logits;
  int64_t live = 0;
  int64_t maxLive = 4;
};

}  // namespace rlhf
