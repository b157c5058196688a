#include <array>
#include <string>

#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
bool counts(const void* mask, int64_t t) {
  return realPart(in<T>(mask)[t]) != 0;
}

/// The index of the value that belongs to token t.
int64_t valueIndex(const char* op, int64_t t, int64_t firstOfSequence) {
  if (t > firstOfSequence) return t - 1;
  throw Error(code::kArgument, std::string(op) + ": mask[" + std::to_string(t) +
                                   "] is 1 at the first token of a sequence, where nothing is predicted");
}

template <class T, size_t Count>
void writeStats(void* stats, const std::array<T, Count>& sums) {
  for (size_t i = 0; i < Count; ++i) out<T>(stats)[i] = sums[i];
}

template <class T>
void run(const Whiten& a) {
  const T* x = in<T>(a.x);
  T sum = 0, squares = 0;
  int64_t selected = 0;
  for (int64_t i = 0; i < a.count; ++i)
    if (counts<T>(a.mask, i)) sum += x[i], ++selected;
  const T mean = selected > 0 ? sum / T(selected) : T(0);
  for (int64_t i = 0; i < a.count; ++i)
    if (counts<T>(a.mask, i)) squares += (x[i] - mean) * (x[i] - mean);
  const T variance = selected > 1 ? squares / T(selected - 1) : T(0);
  const T rstd = T(1) / std::sqrt(variance + T(a.eps));
  for (int64_t i = 0; i < a.count; ++i) {
    const T whitened = (x[i] - mean) * rstd + (a.shiftMean ? T(0) : mean);
    out<T>(a.y)[i] = counts<T>(a.mask, i) ? whitened : T(0);
  }
}

template <class T>
T klEstimate(KlEstimator estimator, const T& d) {
  switch (estimator) {
    case KlEstimator::K1: return -d;
    case KlEstimator::K2: return T(0.5) * d * d;
    case KlEstimator::K3: return expm1(d) - d;
  }
  return T(0);
}

template <class T>
void run(const KlReward& a) {
  checkOffsets("klReward", a.offsets, a.sequences, a.rows);
  for (int64_t s = 0; s < a.sequences; ++s) {
    int64_t last = -1;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      const bool counted = counts<T>(a.mask, t);
      const T kl = counted ? klEstimate(a.estimator, in<T>(a.refLogProb)[t] - in<T>(a.logProb)[t]) : T(0);
      out<T>(a.kl)[t] = kl;
      out<T>(a.reward)[t] = T(-a.klCoefficient) * kl;
      if (counted) last = t;
    }
    if (last >= 0) out<T>(a.reward)[last] += in<T>(a.score)[s];
  }
}

template <class T>
void run(const Gae& a) {
  checkOffsets("gae", a.offsets, a.sequences, a.rows);
  for (int64_t s = 0; s < a.sequences; ++s) {
    T nextValue = 0, nextAdvantage = 0;
    for (int64_t t = a.offsets[s + 1] - 1; t >= a.offsets[s]; --t) {
      out<T>(a.advantage)[t] = 0;
      out<T>(a.returns)[t] = 0;
      if (!counts<T>(a.mask, t)) continue;
      const T value = in<T>(a.value)[valueIndex("gae", t, a.offsets[s])];
      const T delta = in<T>(a.reward)[t] + T(a.gamma) * nextValue - value;
      nextAdvantage = delta + T(a.gamma * a.lambda) * nextAdvantage;
      nextValue = value;
      out<T>(a.advantage)[t] = nextAdvantage;
      out<T>(a.returns)[t] = nextAdvantage + value;
    }
  }
}

template <class T>
void run(const PpoPolicyLoss& a) {
  std::array<T, PpoPolicyLoss::kStatCount> sums{};
  for (int64_t t = 0; t < a.rows; ++t) {
    out<T>(a.dLogProb)[t] = 0;
    if (a.dEntropy) out<T>(a.dEntropy)[t] = 0;
    if (!counts<T>(a.mask, t)) continue;
    const T change = in<T>(a.logProb)[t] - in<T>(a.oldLogProb)[t], advantage = in<T>(a.advantage)[t];
    const T ratio = std::exp(change);
    const T plain = -advantage * ratio;
    const T clipped = -advantage * clip(ratio, T(1 - a.clipRange), T(1 + a.clipRange));
    const T bound = -advantage * T(a.dualClip);
    const bool clippedWins = realPart(clipped) > realPart(plain);
    const bool boundWins = a.dualClip > 0 && realPart(advantage) < 0 && realPart(bound) < realPart(plain);
    out<T>(a.dLogProb)[t] = clippedWins || boundWins ? T(0) : T(a.scale) * plain;
    if (a.dEntropy) out<T>(a.dEntropy)[t] = T(-a.entropyCoefficient * a.scale);
    sums[PpoPolicyLoss::kLoss] += boundWins ? bound : clippedWins ? clipped : plain;
    sums[PpoPolicyLoss::kApproxKl] += T(0.5) * change * change;
    sums[PpoPolicyLoss::kClipped] += T(clippedWins ? 1 : 0);
    sums[PpoPolicyLoss::kRatio] += ratio;
    sums[PpoPolicyLoss::kRatioSquared] += ratio * ratio;
    if (a.entropy) sums[PpoPolicyLoss::kEntropy] += in<T>(a.entropy)[t];
    sums[PpoPolicyLoss::kTokens] += T(1);
    sums[PpoPolicyLoss::kDualClipped] += T(boundWins ? 1 : 0);
  }
  writeStats(a.stats, sums);
}

template <class T>
void run(const PpoValueLoss& a) {
  std::array<T, PpoValueLoss::kStatCount> sums{};
  for (int64_t t = 0; t < a.rows; ++t) out<T>(a.dValue)[t] = 0;
  for (int64_t t = 0; t < a.rows; ++t) {
    if (!counts<T>(a.mask, t)) continue;
    const int64_t at = valueIndex("ppoValueLoss", t, 0);
    const T value = in<T>(a.value)[at], old = in<T>(a.oldValue)[at], target = in<T>(a.returns)[t];
    const T bounded = a.clipRange > 0 ? clip(value, old - T(a.clipRange), old + T(a.clipRange)) : value;
    const T plain = (value - target) * (value - target), clipped = (bounded - target) * (bounded - target);
    const bool clippedWins = realPart(clipped) > realPart(plain);
    out<T>(a.dValue)[at] = clippedWins ? T(0) : T(a.scale) * (value - target);
    sums[PpoValueLoss::kLoss] += T(0.5) * (clippedWins ? clipped : plain);
    sums[PpoValueLoss::kClipped] += T(clippedWins ? 1 : 0);
    sums[PpoValueLoss::kValue] += value;
    sums[PpoValueLoss::kReturn] += target;
    sums[PpoValueLoss::kReturnSquared] += target * target;
    sums[PpoValueLoss::kErrorSquared] += plain;
    sums[PpoValueLoss::kTokens] += T(1);
  }
  writeStats(a.stats, sums);
}

template <class T>
void run(const TokenNllLoss& a) {
  std::array<T, TokenNllLoss::kStatCount> sums{};
  for (int64_t t = 0; t < a.rows; ++t) {
    const T weight = in<T>(a.weight)[t];
    out<T>(a.dLogProb)[t] = T(-a.scale) * weight;
    sums[TokenNllLoss::kLoss] -= weight * in<T>(a.logProb)[t];
    sums[TokenNllLoss::kWeight] += weight;
  }
  writeStats(a.stats, sums);
}

}  // namespace

RLHF_REF_OP(whiten, Whiten)
RLHF_REF_OP(klReward, KlReward)
RLHF_REF_OP(gae, Gae)
RLHF_REF_OP(ppoPolicyLoss, PpoPolicyLoss)
RLHF_REF_OP(ppoValueLoss, PpoValueLoss)
RLHF_REF_OP(tokenNllLoss, TokenNllLoss)

}  // namespace rlhf::ref
