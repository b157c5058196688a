#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

namespace rlhf {

/// What device memory is for.
enum class MemoryUse {
  Weights,        // of models, adapters and heads; rotary position tables
  PackedWeights,  // frozen matrices in the order in which matrix products stream them
  Gradients,
  Optimizer,    // AdamW's moments
  Activations,  // what passes keep, their outputs, and their work arrays
  Logits,       // kept for backward passes
  Scratch,      // of the operators
  Cache,        // keys and values of the sequences being decoded, with what belongs to them
  Arrays,       // results of loss functions: some numbers per token; a matrix while it is packed or read
};
inline constexpr size_t kMemoryUses = 9;

/// "weights", "packedWeights", …
const char* memoryUseName(MemoryUse use);

using MemoryBytes = std::array<size_t, kMemoryUses>;  // by MemoryUse

/// Counts the memory of an engine and keeps it within a budget.
class MemoryLedger {
 public:
  /// Call before the memory is taken. Throws ERR_RLHF_MEMORY, counting nothing, where the sum would be over the budget.
  void take(MemoryUse use, size_t bytes, const char* what);
  void give(MemoryUse use, size_t bytes);

  /// Bytes that may be held from now on; what is held already stays.
  void setBudget(size_t bytes);
  size_t budget() const;
  MemoryBytes held() const;
  /// The most that each use has ever held.
  MemoryBytes peak() const;
  /// The most that all uses but Arrays have ever held at once: less than the sum of their peaks where one took the memory of another.
  size_t peakTotal() const;

 private:
  mutable std::mutex mutex_;
  MemoryBytes held_{};
  MemoryBytes peak_{};
  size_t peakTotal_ = 0;
  size_t budget_ = SIZE_MAX;
};

}  // namespace rlhf
