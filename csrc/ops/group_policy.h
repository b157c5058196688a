#pragma once
#include "ops/context.h"

namespace rlhf {

/// Over what the ratio of new to old probability is taken.
enum class RatioLevel : int32_t {
  Token = 0,         // ρ_t = exp(Δ_t), Δ = logProb − oldLogProb: GRPO (Shao et al., "DeepSeekMath", 2024, eq. 3)
  SequenceMean = 1,  // ρ = exp(mean over the answer of Δ): GSPO (Zheng et al. 2025, eq. 7)
  SequenceSum = 2,   // ρ = exp(Σ over the answer of Δ): RLOO (Ahmadian et al. 2024)
};

enum class PolicySurrogate : int32_t {
  Clipped = 0,    // L = max(−A·ρ, −A·clip(ρ, lowestRatio, highestRatio)); at a tie the gradient is that of the unclipped one
  Truncated = 1,  // L = −min(ρ, highestRatio)·A·logProb, the factor without gradient: CISPO (MiniMax-M1, 2025, eqs. 4 and 5)
};

/// The policy losses without a value function, whose advantage A is one number per answer, or per token with ratios of tokens
/// (REINFORCE++, Hu 2025). Over the masked-in tokens t of each sequence s:
///   loss = Σ_s weight[s]·Σ_t (L_t + klCoefficient·c_t·k_t),  k = e^d − 1 − d, d = refLogProb − logProb (k3, Schulman 2020).
/// c is 1, or with weighKl the ratio ρ, whose gradient counts: with ratios of tokens that of c·k is ρ·(logProb − refLogProb), which
/// estimates the gradient of the KL itself (DeepSeek-V3.2, 2025). With a ratio of the whole sequence every token has its L. The
/// weights say what is averaged over, and multiply gradients too.
struct GroupPolicyLoss {
  // kLoss is weighted; all others are plain sums over tokens. approxKl: Σ ½Δ². kKl is 0 without refLogProb.
  enum Stat {
    kLoss, kApproxKl, kClippedLow, kClippedHigh, kRatio, kRatioSquared, kKl, kTokens, kStatCount
  };

  DType type = DType::F32;
  int64_t rows = 0, sequences = 0;
  RatioLevel level = RatioLevel::Token;
  PolicySurrogate surrogate = PolicySurrogate::Clipped;
  double lowestRatio = 0.8, highestRatio = 1.2, klCoefficient = 0;
  int32_t weighKl = 0;
  const int32_t* offsets = nullptr;      // [S+1]
  const void* mask = nullptr;            // [N], 1 at response tokens
  const void* weight = nullptr;          // [S]
  const void* advantage = nullptr;       // [S] (optional beside tokenAdvantage)
  const void* tokenAdvantage = nullptr;  // [N] (optional; with level Token only), in place of advantage
  const void* logProb = nullptr;         // [N]
  const void* oldLogProb = nullptr;      // [N]
  const void* refLogProb = nullptr;      // [N] (optional unless klCoefficient ≠ 0)
  void* dLogProb = nullptr;              // [N], 0 where masked out
  void* stats = nullptr;                 // [kStatCount]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("sequences", sequences), f("level", level), f("surrogate", surrogate);
    f("lowestRatio", lowestRatio), f("highestRatio", highestRatio), f("klCoefficient", klCoefficient), f("weighKl", weighKl);
    f("offsets", offsets), f("mask", mask), f("weight", weight), f("advantage", advantage), f("tokenAdvantage", tokenAdvantage);
    f("logProb", logProb), f("oldLogProb", oldLogProb), f("refLogProb", refLogProb), f("dLogProb", dLogProb), f("stats", stats);
  }
};

}  // namespace rlhf
