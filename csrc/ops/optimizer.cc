#include "ops/optimizer.h"

#include <cmath>

namespace rlhf {

AdamWConstants adamWConstants(const AdamW& a) {
  const double step = static_cast<double>(a.step);
  return {static_cast<float>(a.gradientScale),
          static_cast<float>(1 - a.learningRate * a.weightDecay),
          static_cast<float>(a.beta1),
          static_cast<float>(a.beta2),
          static_cast<float>(1 - a.beta1),
          static_cast<float>(1 - a.beta2),
          static_cast<float>(a.learningRate / (1 - std::pow(a.beta1, step))),
          static_cast<float>(1 / std::sqrt(1 - std::pow(a.beta2, step))),
          static_cast<float>(a.eps)};
}

}  // namespace rlhf
