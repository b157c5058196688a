#pragma once
#include "ops/context.h"

namespace rlhf {

// Losses that compare whole answers. They are functions of each sequence's summed log-prob: sequenceSum makes those from the
// per-token arrays of a packed batch, sequenceSumBackward spreads their gradients back. Pairs name their sequences by index, so
// a batch may hold others too (prompts that answers share). `stats` are sums over answers or pairs; `scale` multiplies gradients
// only.

/// sum[s] = Σ weight[t]·x[t] over the tokens of sequence s. A weight of 0 leaves x unread.
struct SequenceSum {
  DType type = DType::F32;
  int64_t rows = 0, sequences = 0;
  const int32_t* offsets = nullptr;  // [S+1]
  const void* weight = nullptr;      // [N]
  const void* x = nullptr;           // [N]
  void* sum = nullptr;               // [S]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("sequences", sequences), f("offsets", offsets), f("weight", weight), f("x", x);
    f("sum", sum);
  }
};

/// dx[t] = base[t] + weight[t]·dSum[s]; just base[t] where the weight is 0.
struct SequenceSumBackward {
  DType type = DType::F32;
  int64_t rows = 0, sequences = 0;
  const int32_t* offsets = nullptr;  // [S+1]
  const void* weight = nullptr;      // [N]
  const void* dSum = nullptr;        // [S]
  const void* base = nullptr;        // [N] (optional): gradients of other losses of the same tokens
  void* dx = nullptr;                // [N]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("sequences", sequences), f("offsets", offsets), f("weight", weight);
    f("dSum", dSum), f("base", base), f("dx", dx);
  }
};

/// Weights of weighted preference optimisation (Zhou et al., "WPO", 2024, eq. 2 and section 3.2, aligned form):
///   weight = exp(m_chosen + m_rejected), m the mean over an answer's tokens of logProb − log Σ_v p_v²,
/// where log Σ p² = lseHalf − 2·lse and lseHalf is the logsumexp of twice the logits, that of half the temperature.
struct WpoWeight {
  DType type = DType::F32;
  int64_t rows = 0, sequences = 0, pairs = 0;
  const int32_t* offsets = nullptr;   // [S+1]
  const int32_t* chosen = nullptr;    // [P] sequences
  const int32_t* rejected = nullptr;  // [P]
  const void* mask = nullptr;         // [N]; no answer may be masked out whole
  const void* logProb = nullptr;      // [N]
  const void* lse = nullptr;          // [N]
  const void* lseHalf = nullptr;      // [N]
  void* weight = nullptr;             // [P]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("sequences", sequences), f("pairs", pairs), f("offsets", offsets);
    f("chosen", chosen), f("rejected", rejected), f("mask", mask), f("logProb", logProb), f("lse", lse);
    f("lseHalf", lseHalf), f("weight", weight);
  }
};

enum class PreferenceKind : int32_t {
  // Functions of the margin u = β·(x_c − x_r) − margin; ε is labelSmoothing.
  Sigmoid = 0,   // −(1−ε)·log σ(u) − ε·log σ(−u): DPO (Rafailov et al. 2023, eq. 7), cDPO (Mitchell 2023) where ε > 0
  Hinge = 1,     // max(0, 1 − u), slope 0 at u = 1: SLiC (Zhao et al. 2023), RSO (Liu et al. 2023)
  Ipo = 2,       // ((u − ½)/β)²: IPO (Azar et al. 2023, eq. 17)
  ExoPair = 3,   // KL((q, 1−q) ‖ (1−ε, ε)), q = σ(u): EXO (Ji et al. 2024, eq. 16)
  Robust = 4,    // (−(1−ε)·log σ(u) + ε·log σ(−u))/(1 − 2ε): rDPO (Chowdhury et al. 2024, eq. 8)
  Discopop = 5,  // −log σ(u)·(1−m) + e^(−u)·m, m = σ(u/discopopTau): DiscoPOP (Lu et al. 2024, eq. 5)
  // The sigmoid loss of margins between sorted values, order[k] being the pair of the k-th smallest, ties by pair.
  Aot = 6,          // log-prob differences of policy and of reference (Melnyk et al. 2024, "distributional preference alignment")
  AotUnpaired = 7,  // log-ratios a of chosen and of rejected answers
  // The sigmoid loss of u = log-odds(l_c) − log-odds(l_r), log-odds(l) = l − log(1 − e^l): ORPO (Hong et al. 2024, eqs. 4, 7).
  // l is the mean log-prob of a token, capped at −2⁻²⁴, where its slope becomes 0. β, margin and ε are not used.
  OddsRatio = 8,
  // Functions of the two rewards r = β·a.
  NcaPair = 9,    // −log σ(r_c) − ½·log σ(−r_c) − ½·log σ(−r_r): NCA (Chen et al. 2024)
  BcoPair = 10,   // −log σ(r_c) − log σ(−r_r): BCO without its running mean (Jung et al. 2024)
  SppoHard = 11,  // ((r_c − ½)/β)² + ((r_r + ½)/β)²: SPPO (Wu et al. 2024, eq. 4.7 with probabilities 1 and 0)
  ApoZero = 12,   // 1 − σ(r_c) + σ(r_r): APO-zero (D'Oosterlinck et al. 2024, eq. 7)
  ApoDown = 13,   // σ(r_c) + 1 − σ(r_c − r_r): APO-down (ibid., eq. 8)
};

/// What of the log-ratio a is compared: x = f'(e^a) up to a constant (Wang et al., "Beyond reverse KL", 2023).
enum class FDivergence : int32_t {
  ReverseKl = 0,  // a
  ForwardKl = 1,  // 1 − e^(−a)
  Js = 2,         // log 2 + log σ(a)
  Alpha = 3,      // (e^((fAlpha−1)·a) − 1)/(fAlpha − 1); a at fAlpha = 1
};

/// One loss of the preference-optimisation family on pairs of answers. a = logProb − refLogProb (logProb alone without a
/// reference: CPO, SimPO, ORPO), divided by the answer's tokens if lengthNormalized; an f-divergence is taken before that
/// division. Exponents of f-divergences are capped at 80, where the slope becomes 0. With pairWeight each pair's loss is
/// multiplied by its weight, which has no gradient.
struct PreferenceLoss {
  // reward: β·a, and with logProb's sums per token if statsPerToken; kMargin: Σ (r_chosen − r_rejected); kLoss has no scale.
  enum Stat {
    kLoss, kPairs, kCorrect, kMargin, kChosenReward, kRejectedReward, kChosenLogProb, kRejectedLogProb, kStatCount
  };

  DType type = DType::F32;
  int64_t sequences = 0, pairs = 0;
  PreferenceKind kind = PreferenceKind::Sigmoid;
  FDivergence fDivergence = FDivergence::ReverseKl;  // another for Sigmoid to Discopop only
  int32_t lengthNormalized = 0;                      // always for OddsRatio, never for Aot and AotUnpaired
  int32_t statsPerToken = 0;
  double beta = 0.1, labelSmoothing = 0;             // 0 ≤ ε < ½; 0 < ε for ExoPair
  double margin = 0, fAlpha = 0.5, discopopTau = 0.05, scale = 1;
  const int32_t* chosen = nullptr;    // [P] sequences
  const int32_t* rejected = nullptr;  // [P]
  const int32_t* tokens = nullptr;    // [S] tokens of each answer (optional unless lengthNormalized or statsPerToken), ≥ 1 for answers
  const void* logProb = nullptr;      // [S]
  const void* refLogProb = nullptr;   // [S] (optional; never with OddsRatio)
  const void* pairWeight = nullptr;   // [P] (optional; never with Aot and AotUnpaired, which break pairs up)
  const void* base = nullptr;         // [S] (optional): gradients of other losses of the same answers
  void* dLogProb = nullptr;           // [S]: base (else 0) + scale · gradient
  int32_t* order = nullptr;           // [2·P] (optional but with Aot and AotUnpaired): of policy or chosen, then reference or rejected
  void* stats = nullptr;              // [kStatCount]

  template <class F> void fields(F&& f) {
    f("type", type), f("sequences", sequences), f("pairs", pairs), f("kind", kind), f("fDivergence", fDivergence);
    f("lengthNormalized", lengthNormalized), f("statsPerToken", statsPerToken), f("beta", beta);
    f("labelSmoothing", labelSmoothing), f("margin", margin), f("fAlpha", fAlpha), f("discopopTau", discopopTau);
    f("scale", scale), f("chosen", chosen), f("rejected", rejected), f("tokens", tokens), f("logProb", logProb);
    f("refLogProb", refLogProb), f("pairWeight", pairWeight), f("base", base), f("dLogProb", dLogProb);
    f("order", order), f("stats", stats);
  }
};

/// KTO (Ethayarajh et al. 2024, eq. 8): with r = β·(logProb − refLogProb) and z = β·kl,
///   desirableWeight·(1 − σ(r − z)) for desirable answers, undesirableWeight·(1 − σ(z − r)) for others.
/// kl ≥ 0 is the estimate of KL(policy ‖ reference) from mismatched pairs and has no gradient; kl = 0 gives APO-zero unpaired.
struct KtoLoss {
  enum Stat {
    kLoss, kDesirable, kUndesirable, kChosenReward, kRejectedReward, kChosenLogProb, kRejectedLogProb, kStatCount
  };

  DType type = DType::F32;
  int64_t sequences = 0;
  double beta = 0.1, kl = 0, desirableWeight = 1, undesirableWeight = 1, scale = 1;
  const int32_t* label = nullptr;    // [S]: 1 desirable, −1 undesirable, 0 not an answer
  const void* logProb = nullptr;     // [S]
  const void* refLogProb = nullptr;  // [S]
  void* dLogProb = nullptr;          // [S]
  void* stats = nullptr;             // [kStatCount] sums over desirable (chosen) and undesirable (rejected) answers

  template <class F> void fields(F&& f) {
    f("type", type), f("sequences", sequences), f("beta", beta), f("kl", kl), f("desirableWeight", desirableWeight);
    f("undesirableWeight", undesirableWeight), f("scale", scale), f("label", label), f("logProb", logProb);
    f("refLogProb", refLogProb), f("dLogProb", dLogProb), f("stats", stats);
  }
};

}  // namespace rlhf
