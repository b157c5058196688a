#include "core/memory_ledger.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace rlhf {
namespace {

double mebibytes(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

std::string listed(const MemoryBytes& bytes) {
  std::string text;
  for (size_t use = 0; use < kMemoryUses; ++use)
    if (bytes[use] > 0)
      text += format("%s%s %.1f", text.empty() ? "" : ", ", memoryUseName(static_cast<MemoryUse>(use)), mebibytes(bytes[use]));
  return text.empty() ? "nothing" : text;
}

}  // namespace

const char* memoryUseName(MemoryUse use) {
  switch (use) {
    case MemoryUse::Weights: return "weights";
    case MemoryUse::PackedWeights: return "packedWeights";
    case MemoryUse::Gradients: return "gradients";
    case MemoryUse::Optimizer: return "optimizer";
    case MemoryUse::Activations: return "activations";
    case MemoryUse::Logits: return "logits";
    case MemoryUse::Scratch: return "scratch";
    case MemoryUse::Cache: return "cache";
    case MemoryUse::Arrays: return "arrays";
  }
  return "unknown";
}

void MemoryLedger::take(MemoryUse use, size_t bytes, const char* what) {
  const std::lock_guard lock(mutex_);
  const size_t all = std::accumulate(held_.begin(), held_.end(), size_t{0});
  if (bytes > budget_ || all > budget_ - bytes)
    throw Error(code::kOutOfMemory,
                format("%s: %.1f MiB more are over the memory budget of %.1f MiB. Held now (MiB): %s. Lower microBatchTokens, set "
                       "recomputeLayers, use LoRA, free a model, or raise memoryBudget",
                       what, mebibytes(bytes), mebibytes(budget_), listed(held_).c_str()));
  size_t& held = held_[static_cast<size_t>(use)];
  held += bytes;
  peak_[static_cast<size_t>(use)] = std::max(peak_[static_cast<size_t>(use)], held);
  const size_t arrays = held_[static_cast<size_t>(MemoryUse::Arrays)];
  peakTotal_ = std::max(peakTotal_, std::accumulate(held_.begin(), held_.end(), size_t{0}) - arrays);
}

void MemoryLedger::give(MemoryUse use, size_t bytes) {
  const std::lock_guard lock(mutex_);
  held_[static_cast<size_t>(use)] -= bytes;
}

void MemoryLedger::setBudget(size_t bytes) {
  const std::lock_guard lock(mutex_);
  budget_ = bytes;
}

size_t MemoryLedger::budget() const {
  const std::lock_guard lock(mutex_);
  return budget_;
}

MemoryBytes MemoryLedger::held() const {
  const std::lock_guard lock(mutex_);
  return held_;
}

MemoryBytes MemoryLedger::peak() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

size_t MemoryLedger::peakTotal() const {
  const std::lock_guard lock(mutex_);
  return peakTotal_;
}

}  // namespace rlhf
