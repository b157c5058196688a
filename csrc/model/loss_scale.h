#pragma once
#include <algorithm>
#include <cstdint>

#include "core/dtype.h"

namespace rlhf {

/// What the loss is multiplied by for a backward pass in float16, so that gradients do not vanish there (Micikevicius et al., 2018). It is
/// halved when a step's gradients are not finite, and doubled after kGrowthInterval steps in a row whose are, as torch.amp.GradScaler
/// does; always a power of two, so that scaling rounds nothing. Other types have the range of float32 and are not scaled.
class LossScale {
 public:
  struct State {
    double value = 1;
    int64_t steps = 0;  // in a row, with finite gradients
  };

  explicit LossScale(DType type) : isDynamic_(type == DType::F16) {
    if (isDynamic_) state_.value = kFirst;
  }

  bool isDynamic() const { return isDynamic_; }
  double value() const { return state_.value; }
  const State& state() const { return state_; }
  void restore(const State& state) {
    if (isDynamic_) state_ = state;
  }

  void noteStep(bool finite) {
    if (!isDynamic_) return;
    if (!finite) {
      state_ = {std::max(1.0, state_.value / 2), 0};
    } else if (++state_.steps == kGrowthInterval) {
      state_ = {std::min(kLargest, state_.value * 2), 0};
    }
  }

 private:
  static constexpr double kFirst = 0x1p16, kLargest = 0x1p64;
  static constexpr int64_t kGrowthInterval = 2000;

  bool isDynamic_;
  State state_;
};

}  // namespace rlhf
