#pragma once
#include "ops/context.h"

namespace rlhf {

/// What a pair of answers costs, as a function of the difference z by which the better one scores higher than it must:
/// Logistic −log σ(z), Hinge max(0, −z).
enum class PairLoss : int32_t { Logistic = 1, Hinge = 2 };

/// Losses of a reward model, over pairs of answers and over answers with a score of their own:
///   pair:   y·ℓ(Δ − m) + (1 − y)·ℓ(−Δ − m) + centering·(r_chosen + r_rejected)²,
///           with Δ = r_chosen − r_rejected, y = label, m = margin, and ℓ the pair loss;
///   answer: scoreWeight·(r − score)².
/// y is the probability that the chosen answer is the better one: 1 where a human picked it, ½ for a tie. So
/// Logistic with y = 1 is Bradley-Terry (1952), with any y the two-class cross entropy on softmax(r_chosen, r_rejected); with
/// a margin on every row, wins and ties have the gradients of Rao & Kupper's model (1967), ties half of them. The hinge has slope
/// 0 where z = 0.
struct RewardLoss {
  enum Stat {
    kLoss,          // of pairs and answers
    kPairs,
    kDecided,       // pairs with y ≠ ½, which alone count in correct and margin
    kCorrect,       // decided pairs whose better answer scores higher; ½ for each whose answers score the same
    kMargin,        // Σ of what the better answer scores more
    kReward,        // Σ of all rewards, of pairs and answers
    kRewards,       // how many those are
    kAnswers,
    kSquaredError,  // Σ (r − score)²
    kStatCount
  };

  DType type = DType::F32;
  int64_t rows = 0, pairs = 0, answers = 0;
  PairLoss pairLoss = PairLoss::Logistic;
  double centering = 0, scoreWeight = 1, scale = 1;
  const void* value = nullptr;         // [N] rewards at hidden rows
  const int32_t* chosen = nullptr;     // [pairs] row of the chosen answer's last token
  const int32_t* rejected = nullptr;   // [pairs]
  const void* margin = nullptr;        // [pairs] (optional: 0)
  const void* label = nullptr;         // [pairs] (optional: 1)
  const int32_t* scored = nullptr;     // [answers] row of the answer's last token
  const void* score = nullptr;         // [answers]
  void* dValue = nullptr;              // [N], 0 but at the rows named
  void* stats = nullptr;               // [kStatCount] sums; `scale` multiplies gradients only

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("pairs", pairs), f("answers", answers), f("pairLoss", pairLoss);
    f("centering", centering), f("scoreWeight", scoreWeight), f("scale", scale), f("value", value);
    f("chosen", chosen), f("rejected", rejected), f("margin", margin), f("label", label), f("scored", scored);
    f("score", score), f("dValue", dValue), f("stats", stats);
  }
};

}  // namespace rlhf
