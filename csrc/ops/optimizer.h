#pragma once
#include "ops/context.h"

namespace rlhf {

/// AdamW over one flat array (Loshchilov & Hutter, 2017), as torch.optim.AdamW:
///   p −= lr·weightDecay·p;  m = β₁m + (1−β₁)g;  v = β₂v + (1−β₂)g²;  p −= lr/(1−β₁^step) · m / (√(v/(1−β₂^step)) + eps)
/// with g = gradientScale·gradient (the clipping factor). p is `master` where it is given, and `parameter` then p rounded to `type` as
/// `narrow` rounds; else p is `parameter`, computed as wide as its accumulator type. In bfloat16 it is then rounded stochastically: to the
/// neighbour farther from zero where the part of the gap between the two that p is into, times 2¹⁶, and 16 random bits make 2¹⁶ together.
/// Element i's bits are half i mod 2 (the lower first) of word (i mod 8) div 2 of philox(seed, 2⁶³ + step, i div 8). Float16 needs a master.
struct AdamW {
  DType type = DType::F32;
  int64_t count = 0;
  int64_t step = 1;   // 1 at the first update
  uint64_t seed = 0;  // of stochastic rounding
  double learningRate = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0, gradientScale = 1;
  const void* gradient = nullptr;  // [count], accumulator type, like master, m and v
  void* parameter = nullptr;       // [count]
  void* master = nullptr;          // (optional) [count]
  void* m = nullptr;               // [count]
  void* v = nullptr;               // [count]

  template <class F> void fields(F&& f) {
    f("type", type), f("count", count), f("step", step), f("seed", seed), f("learningRate", learningRate);
    f("beta1", beta1), f("beta2", beta2), f("eps", eps), f("weightDecay", weightDecay), f("gradientScale", gradientScale);
    f("gradient", gradient), f("parameter", parameter), f("master", master), f("m", m), f("v", v);
  }
};

/// The constants of one update in the arithmetic of torch.optim.AdamW: made in double, used in float.
struct AdamWConstants {
  float gradientScale, decay, beta1, beta2, oneMinusBeta1, oneMinusBeta2, stepSize, inverseRootCorrection, eps;
};

AdamWConstants adamWConstants(const AdamW& arguments);

/// out[0] = Σ x², summed in a fixed order in float64 (not finite if any element is not).
struct SquaredNorm {
  DType type = DType::F32;
  int64_t count = 0;
  const void* x = nullptr;  // [count]
  double* out = nullptr;    // [1]

  template <class F> void fields(F&& f) { f("type", type), f("count", count), f("x", x), f("out", out); }
};

}  // namespace rlhf
