#include <array>

#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
bool counts(const GroupPolicyLoss& a, int64_t t) {
  return realPart(in<T>(a.mask)[t]) != 0;
}

template <class T>
T logRatio(const GroupPolicyLoss& a, int64_t t) {
  return in<T>(a.logProb)[t] - in<T>(a.oldLogProb)[t];
}

/// What all tokens of a sequence share: their number, the sum of log-ratios, and for ratios of sequences the ratio.
template <class T>
struct Sequence {
  int64_t begin, end, tokens = 0;
  T weight, advantage, logRatioSum = 0;

  Sequence(const GroupPolicyLoss& a, int64_t s)
      : begin(a.offsets[s]), end(a.offsets[s + 1]), weight(in<T>(a.weight)[s]), advantage(in<T>(a.advantage)[s]) {
    for (int64_t t = begin; t < end; ++t)
      if (counts<T>(a, t)) logRatioSum += logRatio<T>(a, t), ++tokens;
  }

  T ratio(const GroupPolicyLoss& a, int64_t t) const {
    switch (a.level) {
      case RatioLevel::Token: return std::exp(logRatio<T>(a, t));
      case RatioLevel::SequenceMean: return std::exp(logRatioSum / T(tokens));
      case RatioLevel::SequenceSum: return std::exp(logRatioSum);
    }
    return T(0);
  }
};

/// The loss of one token, and the slope of its sequence's loss by this token's log-prob.
template <class T>
struct Surrogate {
  T loss, slope;
  bool low = false, high = false;

  Surrogate(const GroupPolicyLoss& a, const Sequence<T>& sequence, const T& ratio, const T& logProb) {
    const T advantage = sequence.advantage;
    if (a.surrogate == PolicySurrogate::Truncated) {
      high = realPart(ratio) > a.highestRatio;
      // The factor has no gradient: a complex step through the ratio must not show.
      const T factor = high ? T(a.highestRatio) : T(realPart(ratio));
      slope = -factor * advantage;
      loss = slope * logProb;
      return;
    }
    const T plain = -advantage * ratio;
    const T clipped = -advantage * clip(ratio, T(a.lowestRatio), T(a.highestRatio));
    const bool clippedWins = realPart(clipped) > realPart(plain);
    low = clippedWins && realPart(ratio) < a.lowestRatio;
    high = clippedWins && !low;
    loss = clippedWins ? clipped : plain;
    // Each of n equal losses has the slope of a mean (÷ n) or of a sum by every token.
    const T tokens = a.level == RatioLevel::SequenceSum ? T(sequence.tokens) : T(1);
    slope = clippedWins ? T(0) : plain * tokens;
  }
};

template <class T>
void run(const GroupPolicyLoss& a) {
  checkOffsets("groupPolicyLoss", a.offsets, a.sequences, a.rows);
  std::array<T, GroupPolicyLoss::kStatCount> sums{};
  for (int64_t t = 0; t < a.rows; ++t) out<T>(a.dLogProb)[t] = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const Sequence<T> sequence(a, s);
    for (int64_t t = sequence.begin; t < sequence.end; ++t) {
      if (!counts<T>(a, t)) continue;
      const T change = logRatio<T>(a, t), ratio = sequence.ratio(a, t);
      const Surrogate<T> surrogate(a, sequence, ratio, in<T>(a.logProb)[t]);
      const T d = a.refLogProb ? in<T>(a.refLogProb)[t] - in<T>(a.logProb)[t] : T(0);
      const T kl = expm1(d) - d, klSlope = -expm1(d);
      out<T>(a.dLogProb)[t] = sequence.weight * (surrogate.slope + T(a.klCoefficient) * klSlope);
      sums[GroupPolicyLoss::kLoss] += sequence.weight * (surrogate.loss + T(a.klCoefficient) * kl);
      sums[GroupPolicyLoss::kApproxKl] += T(0.5) * change * change;
      sums[GroupPolicyLoss::kClippedLow] += T(surrogate.low ? 1 : 0);
      sums[GroupPolicyLoss::kClippedHigh] += T(surrogate.high ? 1 : 0);
      sums[GroupPolicyLoss::kRatio] += ratio;
      sums[GroupPolicyLoss::kRatioSquared] += ratio * ratio;
      sums[GroupPolicyLoss::kKl] += kl;
      sums[GroupPolicyLoss::kTokens] += T(1);
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) out<T>(a.stats)[i] = sums[i];
}

}  // namespace

RLHF_REF_OP(groupPolicyLoss, GroupPolicyLoss)

}  // namespace rlhf::ref
