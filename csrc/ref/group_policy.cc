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

template <class T>
T fromReference(const GroupPolicyLoss& a, int64_t t) {
  return a.refLogProb ? in<T>(a.refLogProb)[t] - in<T>(a.logProb)[t] : T(0);
}

template <class T>
T kl(const GroupPolicyLoss& a, int64_t t) {
  const T d = fromReference<T>(a, t);
  return expm1(d) - d;
}

/// What all tokens of a sequence share: their number, the sums of log-ratios and of KLs, and for ratios of sequences the ratio.
template <class T>
struct Sequence {
  int64_t begin, end, tokens = 0;
  T weight, advantage = 0, logRatioSum = 0, klSum = 0;

  Sequence(const GroupPolicyLoss& a, int64_t s) : begin(a.offsets[s]), end(a.offsets[s + 1]), weight(in<T>(a.weight)[s]) {
    if (!a.tokenAdvantage) advantage = in<T>(a.advantage)[s];
    for (int64_t t = begin; t < end; ++t)
      if (counts<T>(a, t)) logRatioSum += logRatio<T>(a, t), klSum += kl<T>(a, t), ++tokens;
  }

  T advantageOf(const GroupPolicyLoss& a, int64_t t) const {
    return a.tokenAdvantage ? in<T>(a.tokenAdvantage)[t] : advantage;
  }

  T ratio(const GroupPolicyLoss& a, int64_t t) const {
    switch (a.level) {
      case RatioLevel::Token: return std::exp(logRatio<T>(a, t));
      case RatioLevel::SequenceMean: return std::exp(logRatioSum / T(tokens));
      case RatioLevel::SequenceSum: return std::exp(logRatioSum);
    }
    return T(0);
  }

  /// The slope of Σ c·k over the sequence by the log-prob of t.
  T klSlope(const GroupPolicyLoss& a, int64_t t, const T& ratio) const {
    const T slope = -expm1(fromReference<T>(a, t));
    if (!a.weighKl) return slope;
    switch (a.level) {
      case RatioLevel::Token: return ratio * (slope + kl<T>(a, t));
      case RatioLevel::SequenceMean: return ratio * (slope + klSum / T(tokens));
      case RatioLevel::SequenceSum: return ratio * (slope + klSum);
    }
    return T(0);
  }
};

/// The loss of one token, and the slope of its sequence's loss by this token's log-prob.
template <class T>
struct Surrogate {
  T loss, slope;
  bool low = false, high = false;

  Surrogate(const GroupPolicyLoss& a, const Sequence<T>& sequence, const T& advantage, const T& ratio, const T& logProb) {
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
      const Surrogate<T> surrogate(a, sequence, sequence.advantageOf(a, t), ratio, in<T>(a.logProb)[t]);
      const T k = kl<T>(a, t), weighedKl = a.weighKl ? ratio * k : k;
      out<T>(a.dLogProb)[t] = sequence.weight * (surrogate.slope + T(a.klCoefficient) * sequence.klSlope(a, t, ratio));
      sums[GroupPolicyLoss::kLoss] += sequence.weight * (surrogate.loss + T(a.klCoefficient) * weighedKl);
      sums[GroupPolicyLoss::kApproxKl] += T(0.5) * change * change;
      sums[GroupPolicyLoss::kClippedLow] += T(surrogate.low ? 1 : 0);
      sums[GroupPolicyLoss::kClippedHigh] += T(surrogate.high ? 1 : 0);
      sums[GroupPolicyLoss::kRatio] += ratio;
      sums[GroupPolicyLoss::kRatioSquared] += ratio * ratio;
      sums[GroupPolicyLoss::kKl] += k;
      sums[GroupPolicyLoss::kTokens] += T(1);
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) out<T>(a.stats)[i] = sums[i];
}

}  // namespace

RLHF_REF_OP(groupPolicyLoss, GroupPolicyLoss)

}  // namespace rlhf::ref
