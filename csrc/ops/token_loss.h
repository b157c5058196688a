#pragma once
#include "ops/group_policy.h"
#include "ops/losses.h"
#include "ops/token_log_prob.h"

namespace rlhf {

/// Which op's loss; all have a gradient at a token that depends on that token alone.
enum class TokenLossKind : int32_t {
  Nll = 0,          // tokenNllLoss
  PpoPolicy = 1,    // ppoPolicyLoss
  GroupPolicy = 2,  // groupPolicyLoss with ratios of tokens
};

/// A loss of tokens as plain data: what the op that `kind` names takes, but for the statistics and what it gives. The other kinds'
/// members are not looked at.
struct TokenLoss {
  TokenLossKind kind = TokenLossKind::Nll;
  double scale = 1;                                              // nll, ppo
  double clipRange = 0.2, dualClip = 0, entropyCoefficient = 0;  // ppo
  PolicySurrogate surrogate = PolicySurrogate::Clipped;          // group, and what follows
  double lowestRatio = 0.8, highestRatio = 1.2, klCoefficient = 0;
  int32_t weighKl = 0;
  int64_t sequences = 0;
  const int32_t* offsets = nullptr;      // [S+1] group
  const void* mask = nullptr;            // [N] ppo, group: 1 at tokens that count
  const void* tokenWeight = nullptr;     // [N] nll: its `weight`
  const void* sequenceWeight = nullptr;  // [S] group: its `weight`
  const void* advantage = nullptr;       // [S] group (optional beside tokenAdvantage)
  const void* tokenAdvantage = nullptr;  // [N] ppo, group
  const void* oldLogProb = nullptr;      // [N] ppo, group
  const void* refLogProb = nullptr;      // [N] group (optional unless klCoefficient ≠ 0)

  int statCount() const {
    switch (kind) {
      case TokenLossKind::Nll: return TokenNllLoss::kStatCount;
      case TokenLossKind::PpoPolicy: return PpoPolicyLoss::kStatCount;
      case TokenLossKind::GroupPolicy: return GroupPolicyLoss::kStatCount;
    }
    return 0;
  }

  template <class F> void fields(F&& f) {
    f("kind", kind), f("scale", scale), f("clipRange", clipRange), f("dualClip", dualClip);
    f("entropyCoefficient", entropyCoefficient), f("surrogate", surrogate), f("lowestRatio", lowestRatio);
    f("highestRatio", highestRatio), f("klCoefficient", klCoefficient), f("weighKl", weighKl), f("sequences", sequences);
    f("offsets", offsets), f("mask", mask), f("tokenWeight", tokenWeight), f("sequenceWeight", sequenceWeight);
    f("advantage", advantage), f("tokenAdvantage", tokenAdvantage), f("oldLogProb", oldLogProb), f("refLogProb", refLogProb);
  }
};

/// tokenLogProbForward, the loss, and tokenLogProbBackward in one: of `blockRows` predictions at a time, whose logits stand in
/// `logits` and nowhere else, so that the head is gone through once and as few logits are held as the caller likes; without `logits`
/// they are computed twice, to the same bits. The statistics and the loss are those of the ops on their own, bit for bit; so is dx
/// where no hidden row predicts tokens of two blocks, and all of it where the blocks are those of tokenLogProbBackward. Without dx there
/// is no backward pass.
struct TokenLossForwardBackward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, vocab = 0, count = 0;  // N, C, V and the number of predictions
  int64_t blockRows = 0;
  double temperature = 1, lossScale = 1;  // the second of dx and dWeight, as in tokenLogProbBackward
  const void* x = nullptr;               // [N, C]
  const int32_t* tokens = nullptr;       // [N]
  const int32_t* predictions = nullptr;  // [count] as in tokenLogProbForward
  const int32_t* sources = nullptr;      // [count]
  LinearWeight head{};                   // [V, C], not transposed
  TokenLoss loss{};
  void* logProb = nullptr;    // [N], accumulator type, like all that follow but dx; the caller zeroes what is not predicted
  void* lse = nullptr;        // [N]
  void* entropy = nullptr;    // [N]
  void* dLogProb = nullptr;   // [N]
  void* dEntropy = nullptr;   // [N] (optional unless the loss has an entropy bonus)
  void* logits = nullptr;     // [min(blockRows, count), V], work (optional)
  void* dx = nullptr;         // += [N, C] (optional)
  void* dWeight = nullptr;    // += [V, C] (optional; none without dx)
  void* stats = nullptr;      // the loss's sums over all N tokens, in their order

  bool hasBonus() const { return loss.kind == TokenLossKind::PpoPolicy && loss.entropyCoefficient != 0; }

  /// What the three ops in it are given, for all predictions.
  TokenLogProbForward forward() const;
  TokenLogProbBackward backward() const;
  TokenNllLoss nllLoss() const;
  PpoPolicyLoss ppoLoss() const;
  GroupPolicyLoss groupLoss() const;

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("vocab", vocab), f("count", count), f("blockRows", blockRows);
    f("temperature", temperature), f("lossScale", lossScale), f("x", x), f("tokens", tokens), f("predictions", predictions), f("sources", sources);
    f("weightType", head.type), f("compute", head.compute), f("weight", head.data), f("packedForward", head.packedForward);
    f("packedBackward", head.packedBackward), loss.fields(f), f("logProb", logProb), f("lse", lse), f("entropy", entropy);
    f("dLogProb", dLogProb), f("dEntropy", dEntropy), f("logits", logits), f("dx", dx), f("dWeight", dWeight), f("stats", stats);
  }
};

}  // namespace rlhf
