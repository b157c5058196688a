#include <algorithm>
#include <array>
#include <numbers>
#include <numeric>
#include <string>

#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
void run(const SequenceSum& a) {
  checkOffsets("sequenceSum", a.offsets, a.sequences, a.rows);
  for (int64_t s = 0; s < a.sequences; ++s) {
    T sum = 0;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t)
      if (realPart(in<T>(a.weight)[t]) != 0) sum += in<T>(a.weight)[t] * in<T>(a.x)[t];
    out<T>(a.sum)[s] = sum;
  }
}

template <class T>
void run(const SequenceSumBackward& a) {
  checkOffsets("sequenceSumBackward", a.offsets, a.sequences, a.rows);
  for (int64_t s = 0; s < a.sequences; ++s)
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t)
      out<T>(a.dx)[t] = (a.base ? in<T>(a.base)[t] : T(0)) +
                        (realPart(in<T>(a.weight)[t]) != 0 ? in<T>(a.weight)[t] * in<T>(a.dSum)[s] : T(0));
}

/// The sequences of each pair must be there.
template <class Arguments>
void checkPairs(const char* op, const Arguments& a) {
  for (int64_t p = 0; p < a.pairs; ++p) {
    checkIndex(op, "chosen", p, a.chosen[p], a.sequences);
    checkIndex(op, "rejected", p, a.rejected[p], a.sequences);
  }
}

template <class T>
T meanAlignedLogProb(const WpoWeight& a, int64_t sequence) {
  T sum = 0;
  int64_t tokens = 0;
  for (int64_t t = a.offsets[sequence]; t < a.offsets[sequence + 1]; ++t) {
    if (realPart(in<T>(a.mask)[t]) == 0) continue;
    sum += in<T>(a.logProb)[t] - (in<T>(a.lseHalf)[t] - T(2) * in<T>(a.lse)[t]);
    ++tokens;
  }
  if (tokens == 0)
    throw Error(code::kArgument, "wpoWeight: mask selects no token of sequence " + std::to_string(sequence));
  return sum / T(tokens);
}

template <class T>
void run(const WpoWeight& a) {
  checkOffsets("wpoWeight", a.offsets, a.sequences, a.rows);
  checkPairs("wpoWeight", a);
  for (int64_t p = 0; p < a.pairs; ++p)
    out<T>(a.weight)[p] = std::exp(meanAlignedLogProb<T>(a, a.chosen[p]) + meanAlignedLogProb<T>(a, a.rejected[p]));
}

template <class T>
struct ValueAndSlope {
  T value, slope;
};

/// x of a log-ratio under the f-divergence.
template <class T>
ValueAndSlope<T> score(const PreferenceLoss& a, const T& logRatio) {
  constexpr double kLargestExponent = 80;
  if (a.fDivergence == FDivergence::Js)
    return {T(std::numbers::ln2) - negativeLogSigmoid(logRatio), sigmoid(-logRatio)};
  const double power = a.fDivergence == FDivergence::ForwardKl ? -1 : a.fAlpha - 1;
  if (a.fDivergence == FDivergence::ReverseKl || power == 0) return {logRatio, T(1)};
  const T exponent = T(power) * logRatio;
  if (realPart(exponent) > kLargestExponent) return {T(std::expm1(kLargestExponent) / power), T(0)};
  return {expm1(exponent) / T(power), std::exp(exponent)};
}

/// log(1 − e^x) for x < 0 (Mächler, "Accurately computing log(1 − exp(−|a|))", 2012).
template <class T>
T log1mexp(const T& x) {
  return realPart(x) < -std::numbers::ln2 ? log1p(-std::exp(x)) : std::log(-expm1(x));
}

template <class T>
ValueAndSlope<T> logOdds(const T& meanLogProb) {
  constexpr double kCap = -0x1p-24;
  if (realPart(meanLogProb) > kCap) return {T(kCap - log1mexp(kCap)), T(0)};
  return {meanLogProb - log1mexp(meanLogProb), T(-1) / expm1(meanLogProb)};
}

template <class T>
ValueAndSlope<T> smoothedSigmoidLoss(double epsilon, const T& u) {
  return {T(1 - epsilon) * negativeLogSigmoid(u) + T(epsilon) * negativeLogSigmoid(-u),
          T(epsilon) * sigmoid(u) - T(1 - epsilon) * sigmoid(-u)};
}

template <class T>
ValueAndSlope<T> exoLoss(double epsilon, const T& u) {
  const T q = sigmoid(u), notQ = sigmoid(-u);
  const T logOver = -negativeLogSigmoid(u) - T(std::log1p(-epsilon));
  const T logOverNot = -negativeLogSigmoid(-u) - T(std::log(epsilon));
  return {q * logOver + notQ * logOverNot, q * notQ * (logOver - logOverNot)};
}

template <class T>
ValueAndSlope<T> discopopLoss(double tau, const T& u) {
  const T mix = sigmoid(u / T(tau)), rest = sigmoid(-u / T(tau));
  const T logistic = negativeLogSigmoid(u);
  const T mixedExponential = std::exp(-u - negativeLogSigmoid(u / T(tau)));  // e^(−u)·mix without overflow
  const T value = logistic * rest + mixedExponential;
  const T slope = -sigmoid(-u) * rest - logistic * mix * rest / T(tau) + mixedExponential * (rest / T(tau) - T(1));
  return {value, slope};
}

/// The losses that are functions of the margin alone.
template <class T>
ValueAndSlope<T> marginLoss(const PreferenceLoss& a, const T& u) {
  const double epsilon = a.labelSmoothing;
  switch (a.kind) {
    case PreferenceKind::Hinge:
      return realPart(u) < 1 ? ValueAndSlope<T>{T(1) - u, T(-1)} : ValueAndSlope<T>{T(0), T(0)};
    case PreferenceKind::Ipo: {
      const T error = (u - T(0.5)) / T(a.beta);
      return {error * error, T(2 / a.beta) * error};
    }
    case PreferenceKind::ExoPair: return exoLoss(epsilon, u);
    case PreferenceKind::Robust: {
      const T norm = T(1 - 2 * epsilon);
      return {(T(1 - epsilon) * negativeLogSigmoid(u) - T(epsilon) * negativeLogSigmoid(-u)) / norm,
              (-T(1 - epsilon) * sigmoid(-u) - T(epsilon) * sigmoid(u)) / norm};
    }
    case PreferenceKind::Discopop: return discopopLoss(a.discopopTau, u);
    default: return smoothedSigmoidLoss(epsilon, u);
  }
}

/// A pair's loss and its gradients by what it is a function of: the two rewards, or the two log-ratios.
template <class T>
struct PairLoss {
  T loss = 0, dChosen = 0, dRejected = 0;
};

/// The losses that look at the rewards of the two answers apart.
template <class T>
PairLoss<T> rewardLoss(const PreferenceLoss& a, const T& c, const T& r) {
  const auto slopeOfSigmoid = [](const T& x) { return sigmoid(x) * sigmoid(-x); };
  switch (a.kind) {
    case PreferenceKind::NcaPair:
      return {negativeLogSigmoid(c) + T(0.5) * (negativeLogSigmoid(-c) + negativeLogSigmoid(-r)),
              T(0.5) * sigmoid(c) - sigmoid(-c), T(0.5) * sigmoid(r)};
    case PreferenceKind::BcoPair: return {negativeLogSigmoid(c) + negativeLogSigmoid(-r), -sigmoid(-c), sigmoid(r)};
    case PreferenceKind::SppoHard: {
      const T winner = (c - T(0.5)) / T(a.beta), loser = (r + T(0.5)) / T(a.beta);
      return {winner * winner + loser * loser, T(2 / a.beta) * winner, T(2 / a.beta) * loser};
    }
    case PreferenceKind::ApoZero: return {sigmoid(-c) + sigmoid(r), -slopeOfSigmoid(c), slopeOfSigmoid(r)};
    default: {  // ApoDown
      const T slope = slopeOfSigmoid(c - r);
      return {sigmoid(c) + sigmoid(r - c), slopeOfSigmoid(c) - slope, slope};
    }
  }
}

/// One answer of a pair.
template <class T>
struct Answer {
  T logProb, logRatio;  // summed over the answer
  T length;             // what the loss divides by
  T statLength;         // what the statistics divide by
};

template <class T>
Answer<T> answer(const PreferenceLoss& a, int64_t sequence) {
  const T logProb = in<T>(a.logProb)[sequence];
  T tokens = 1;
  if (a.lengthNormalized || a.statsPerToken) {
    if (a.tokens[sequence] < 1)
      throw Error(code::kArgument, "preferenceLoss: tokens[" + std::to_string(sequence) + "] is " +
                                       std::to_string(a.tokens[sequence]) + ", expected 1 or more");
    tokens = T(a.tokens[sequence]);
  }
  return {logProb, a.refLogProb ? logProb - in<T>(a.refLogProb)[sequence] : logProb,
          a.lengthNormalized ? tokens : T(1), a.statsPerToken ? tokens : T(1)};
}

template <class T>
PairLoss<T> pairLoss(const PreferenceLoss& a, const Answer<T>& chosen, const Answer<T>& rejected) {
  const T beta = T(a.beta);
  if (a.kind == PreferenceKind::OddsRatio) {
    const auto c = logOdds<T>(chosen.logRatio / chosen.length), r = logOdds<T>(rejected.logRatio / rejected.length);
    const auto f = smoothedSigmoidLoss<T>(0, c.value - r.value);
    return {f.value, f.slope * c.slope / chosen.length, -f.slope * r.slope / rejected.length};
  }
  if (a.kind > PreferenceKind::OddsRatio) {
    const PairLoss<T> f =
        rewardLoss<T>(a, beta * chosen.logRatio / chosen.length, beta * rejected.logRatio / rejected.length);
    return {f.loss, f.dChosen * beta / chosen.length, f.dRejected * beta / rejected.length};
  }
  const auto c = score<T>(a, chosen.logRatio), r = score<T>(a, rejected.logRatio);
  const auto f = marginLoss<T>(a, beta * (c.value / chosen.length - r.value / rejected.length) - T(a.margin));
  return {f.value, f.slope * beta * c.slope / chosen.length, -f.slope * beta * r.slope / rejected.length};
}

/// order[0 … count) sorts the values: ties by index, NaN last.
template <class Value>
void sortedOrder(int32_t* order, int64_t count, const Value& value) {
  std::iota(order, order + count, 0);
  const auto before = [](double x, double y) { return std::isnan(y) ? !std::isnan(x) : x < y; };
  std::sort(order, order + count, [&](int32_t i, int32_t j) {
    const double x = realPart(value(i)), y = realPart(value(j));
    if (before(x, y)) return true;
    return !before(y, x) && i < j;
  });
}

/// The summed loss of margins between sorted values; adds its gradients to dLogProb.
template <class T>
T sortedLoss(const PreferenceLoss& a) {
  const bool unpaired = a.kind == PreferenceKind::AotUnpaired;
  const T *logProb = in<T>(a.logProb), *ref = in<T>(a.refLogProb);
  const auto reference = [&](int64_t sequence) { return ref ? ref[sequence] : T(0); };
  const auto upper = [&](int64_t p) {
    return logProb[a.chosen[p]] - (unpaired ? reference(a.chosen[p]) : logProb[a.rejected[p]]);
  };
  const auto lower = [&](int64_t p) {
    return unpaired ? logProb[a.rejected[p]] - reference(a.rejected[p])
                    : reference(a.chosen[p]) - reference(a.rejected[p]);
  };
  int32_t *upperOrder = a.order, *lowerOrder = a.order + a.pairs;
  sortedOrder(upperOrder, a.pairs, upper);
  sortedOrder(lowerOrder, a.pairs, lower);
  T loss = 0;
  for (int64_t k = 0; k < a.pairs; ++k) {
    const int32_t up = upperOrder[k], low = unpaired ? lowerOrder[k] : up;
    const T u = T(a.beta) * (upper(up) - lower(lowerOrder[k])) - T(a.margin);
    const auto f = marginLoss<T>(a, u);
    loss += f.value;
    out<T>(a.dLogProb)[a.chosen[up]] += T(a.scale * a.beta) * f.slope;
    out<T>(a.dLogProb)[a.rejected[low]] -= T(a.scale * a.beta) * f.slope;
  }
  return loss;
}

template <class T>
void run(const PreferenceLoss& a) {
  using Loss = PreferenceLoss;
  checkPairs("preferenceLoss", a);
  for (int64_t s = 0; s < a.sequences; ++s) out<T>(a.dLogProb)[s] = a.base ? in<T>(a.base)[s] : T(0);
  std::array<T, Loss::kStatCount> sums{};
  const bool sorts = a.kind == PreferenceKind::Aot || a.kind == PreferenceKind::AotUnpaired;
  if (sorts) sums[Loss::kLoss] = sortedLoss<T>(a);
  for (int64_t p = 0; p < a.pairs; ++p) {
    const Answer<T> chosen = answer<T>(a, a.chosen[p]), rejected = answer<T>(a, a.rejected[p]);
    if (!sorts) {
      const PairLoss<T> f = pairLoss(a, chosen, rejected);
      const T weight = a.pairWeight ? in<T>(a.pairWeight)[p] : T(1);
      sums[Loss::kLoss] += weight * f.loss;
      out<T>(a.dLogProb)[a.chosen[p]] += T(a.scale) * weight * f.dChosen;
      out<T>(a.dLogProb)[a.rejected[p]] += T(a.scale) * weight * f.dRejected;
    }
    const T chosenReward = T(a.beta) * chosen.logRatio / chosen.statLength;
    const T rejectedReward = T(a.beta) * rejected.logRatio / rejected.statLength;
    sums[Loss::kPairs] += T(1);
    sums[Loss::kCorrect] += T(realPart(chosenReward) > realPart(rejectedReward) ? 1 : 0);
    sums[Loss::kMargin] += chosenReward - rejectedReward;
    sums[Loss::kChosenReward] += chosenReward;
    sums[Loss::kRejectedReward] += rejectedReward;
    sums[Loss::kChosenLogProb] += chosen.logProb / chosen.statLength;
    sums[Loss::kRejectedLogProb] += rejected.logProb / rejected.statLength;
  }
  for (size_t i = 0; i < sums.size(); ++i) out<T>(a.stats)[i] = sums[i];
}

template <class T>
void run(const KtoLoss& a) {
  std::array<T, KtoLoss::kStatCount> sums{};
  for (int64_t s = 0; s < a.sequences; ++s) {
    out<T>(a.dLogProb)[s] = 0;
    const int32_t label = a.label[s];
    if (label < -1 || label > 1)
      throw Error(code::kArgument, "ktoLoss: label[" + std::to_string(s) + "] is " + std::to_string(label) +
                                       ", expected 1, -1 or 0");
    if (label == 0) continue;
    const bool desirable = label > 0;
    const T weight = T(desirable ? a.desirableWeight : a.undesirableWeight);
    const T reward = T(a.beta) * (in<T>(a.logProb)[s] - in<T>(a.refLogProb)[s]);
    const T gain = T(label) * (reward - T(a.beta * a.kl));
    sums[KtoLoss::kLoss] += weight * sigmoid(-gain);
    out<T>(a.dLogProb)[s] = T(-a.scale * a.beta * label) * weight * sigmoid(gain) * sigmoid(-gain);
    sums[desirable ? KtoLoss::kDesirable : KtoLoss::kUndesirable] += T(1);
    sums[desirable ? KtoLoss::kChosenReward : KtoLoss::kRejectedReward] += reward;
    sums[desirable ? KtoLoss::kChosenLogProb : KtoLoss::kRejectedLogProb] += in<T>(a.logProb)[s];
  }
  for (size_t i = 0; i < sums.size(); ++i) out<T>(a.stats)[i] = sums[i];
}

}  // namespace

RLHF_REF_OP(sequenceSum, SequenceSum)
RLHF_REF_OP(sequenceSumBackward, SequenceSumBackward)
RLHF_REF_OP(wpoWeight, WpoWeight)
RLHF_REF_OP(preferenceLoss, PreferenceLoss)
RLHF_REF_OP(ktoLoss, KtoLoss)

}  // namespace rlhf::ref
