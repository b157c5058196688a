#pragma once
#include "ops/context.h"

namespace rlhf {

// Per-token arrays have N elements of accumulatorType(type) and describe token t at index t. Values come from the head on hidden
// states: the value that belongs to token t is value[t−1]. `mask` is 1 at tokens that count (responses), else 0; a masked-in token is
// never the first of its sequence. `stats` holds sums, not means, so that micro-batches add up. `scale` is 1 / (what the loss is
// averaged over) and multiplies gradients only.

/// Masked whitening: y = (x − mean)·(var + eps)^(-1/2), unbiased variance over the mask, plus the mean when shiftMean is 0.
/// Masked-out elements become 0. With fewer than two elements the variance counts as 0.
struct Whiten {
  DType type = DType::F32;
  int64_t count = 0;
  int32_t shiftMean = 1;
  double eps = 1e-8;
  const void* mask = nullptr;  // [count]
  const void* x = nullptr;     // [count]
  void* y = nullptr;           // [count]

  template <class F> void fields(F&& f) {
    f("type", type), f("count", count), f("shiftMean", shiftMean), f("eps", eps), f("mask", mask), f("x", x), f("y", y);
  }
};

enum class KlEstimator : int32_t { K1 = 1, K2 = 2, K3 = 3 };

/// Rewards of PPO: −klCoefficient·kl[t] at every response token, plus the sequence's score at its last one.
/// With d = refLogProb − logProb: k1 = −d, k2 = ½d², k3 = e^d − 1 − d (Schulman, "Approximating KL Divergence", 2020).
struct KlReward {
  DType type = DType::F32;
  int64_t rows = 0, sequences = 0;
  KlEstimator estimator = KlEstimator::K1;
  double klCoefficient = 0;
  const int32_t* offsets = nullptr;  // [S+1]
  const void* mask = nullptr;        // [N]
  const void* logProb = nullptr;     // [N] of the policy that sampled
  const void* refLogProb = nullptr;  // [N] of the reference policy
  const void* score = nullptr;       // [S]
  void* reward = nullptr;            // [N]
  void* kl = nullptr;                // [N]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("sequences", sequences), f("estimator", estimator);
    f("klCoefficient", klCoefficient), f("offsets", offsets), f("mask", mask), f("logProb", logProb);
    f("refLogProb", refLogProb), f("score", score), f("reward", reward), f("kl", kl);
  }
};

/// Generalised advantage estimation (Schulman et al., 2015), backwards over the masked-in tokens of each sequence:
///   δ = r + γ·V' − V,  A = δ + γλ·A',  return = A + V; beyond the last token V' = A' = 0. Masked-out tokens get 0.
struct Gae {
  DType type = DType::F32;
  int64_t rows = 0, sequences = 0;
  double gamma = 1, lambda = 0.95;
  const int32_t* offsets = nullptr;  // [S+1]
  const void* mask = nullptr;        // [N]
  const void* reward = nullptr;      // [N]
  const void* value = nullptr;       // [N], V of token t is value[t−1]
  void* advantage = nullptr;         // [N]
  void* returns = nullptr;           // [N]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("sequences", sequences), f("gamma", gamma), f("lambda", lambda);
    f("offsets", offsets), f("mask", mask), f("reward", reward), f("value", value), f("advantage", advantage);
    f("returns", returns);
  }
};

/// PPO's clipped policy loss (Schulman et al., 2017, eq. 7) with an entropy bonus:
///   ρ = exp(logProb − oldLogProb), loss = max(−A·ρ, −A·clip(ρ, 1−clipRange, 1+clipRange)) − entropyCoefficient·entropy.
/// Where A < 0, dualClip bounds the first term by −A·dualClip (Ye et al., 2020, eq. 5), so that a ratio far over 1 has no gradient;
/// dualClip 0 means no bound. At a tie of branches the gradient is that of the unclipped one.
struct PpoPolicyLoss {
  /// kApproxKl: Σ ½(Δ log-prob)². kClipped and kDualClipped count the tokens at which that bound wins.
  enum Stat { kLoss, kApproxKl, kClipped, kRatio, kRatioSquared, kEntropy, kTokens, kDualClipped, kStatCount };

  DType type = DType::F32;
  int64_t rows = 0;
  double clipRange = 0.2, dualClip = 0, entropyCoefficient = 0, scale = 1;
  const void* mask = nullptr;        // [N]
  const void* logProb = nullptr;     // [N]
  const void* oldLogProb = nullptr;  // [N]
  const void* advantage = nullptr;   // [N]
  const void* entropy = nullptr;     // [N] (optional unless entropyCoefficient ≠ 0)
  void* dLogProb = nullptr;          // [N]
  void* dEntropy = nullptr;          // [N] (optional unless entropyCoefficient ≠ 0)
  void* stats = nullptr;             // [kStatCount] sums; kLoss is the policy loss without the bonus

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("clipRange", clipRange), f("dualClip", dualClip);
    f("entropyCoefficient", entropyCoefficient), f("scale", scale), f("mask", mask), f("logProb", logProb);
    f("oldLogProb", oldLogProb), f("advantage", advantage), f("entropy", entropy), f("dLogProb", dLogProb);
    f("dEntropy", dEntropy), f("stats", stats);
  }
};

/// PPO's clipped value loss: ½·max((V − R)², (clip(V, V_old ± clipRange) − R)²); clipRange ≤ 0 means no clipping.
struct PpoValueLoss {
  enum Stat { kLoss, kClipped, kValue, kReturn, kReturnSquared, kErrorSquared, kTokens, kStatCount };

  DType type = DType::F32;
  int64_t rows = 0;
  double clipRange = 0.2, scale = 1;
  const void* mask = nullptr;      // [N], at tokens
  const void* value = nullptr;     // [N], V of token t is value[t−1]
  const void* oldValue = nullptr;  // [N], likewise
  const void* returns = nullptr;   // [N], at tokens
  void* dValue = nullptr;          // [N], laid out as value: the gradient of token t's value stands at t−1, 0 elsewhere
  void* stats = nullptr;           // [kStatCount]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("clipRange", clipRange), f("scale", scale), f("mask", mask), f("value", value);
    f("oldValue", oldValue), f("returns", returns), f("dValue", dValue), f("stats", stats);
  }
};

/// Weighted negative log-likelihood: loss = −Σ weight·logProb, dLogProb = −weight·scale.
struct TokenNllLoss {
  enum Stat { kLoss, kWeight, kStatCount };

  DType type = DType::F32;
  int64_t rows = 0;
  double scale = 1;
  const void* weight = nullptr;   // [N]
  const void* logProb = nullptr;  // [N]
  void* dLogProb = nullptr;       // [N]
  void* stats = nullptr;          // [kStatCount]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("scale", scale), f("weight", weight), f("logProb", logProb);
    f("dLogProb", dLogProb), f("stats", stats);
  }
};

}  // namespace rlhf
