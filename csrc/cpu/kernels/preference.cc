#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <numeric>

#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"

// A few numbers per pair: plain loops on the calling thread, in double as in losses.cc.

namespace rlhf::RLHF_ISA {
namespace {

double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }
float* out(void* array) { return static_cast<float*>(array); }
void add(void* array, int64_t index, double value) {
  out(array)[index] = static_cast<float>(at(array, index) + value);
}

template <size_t Count>
void writeStats(void* stats, const std::array<double, Count>& sums) {
  for (size_t i = 0; i < Count; ++i) out(stats)[i] = static_cast<float>(sums[i]);
}

/// 1 / (1 + e^(−x)). Where e^(−x) overflows it is 0, as it should be.
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// −log σ(x) without overflow on either side.
double negativeLogSigmoid(double x) { return std::log1p(std::exp(-std::abs(x))) + std::max(-x, 0.0); }

/// log(1 − e^x) for x < 0 (Mächler, "Accurately computing log(1 − exp(−|a|))", 2012).
double log1mexp(double x) {
  return x < -std::numbers::ln2 ? std::log1p(-std::exp(x)) : std::log(-std::expm1(x));
}

template <class Arguments>
void requirePairs(const char* op, const Arguments& a) {
  for (int64_t p = 0; p < a.pairs; ++p) {
    requireIndex(op, "chosen", p, a.chosen[p], a.sequences);
    requireIndex(op, "rejected", p, a.rejected[p], a.sequences);
  }
}

double meanAlignedLogProb(const WpoWeight& a, int64_t sequence) {
  double sum = 0;
  int64_t tokens = 0;
  for (int64_t t = a.offsets[sequence]; t < a.offsets[sequence + 1]; ++t) {
    if (at(a.mask, t) == 0) continue;
    sum += at(a.logProb, t) - (at(a.lseHalf, t) - 2 * at(a.lse, t));
    ++tokens;
  }
  if (tokens == 0)
    throw Error(code::kArgument, format("wpoWeight: mask selects no token of sequence %lld",
                                        static_cast<long long>(sequence)));
  return sum / static_cast<double>(tokens);
}

struct ValueAndSlope {
  double value, slope;
};

/// x of a log-ratio under the f-divergence.
ValueAndSlope score(const PreferenceLoss& a, double logRatio) {
  constexpr double kLargestExponent = 80;
  if (a.fDivergence == FDivergence::Js)
    return {std::numbers::ln2 - negativeLogSigmoid(logRatio), sigmoid(-logRatio)};
  const double power = a.fDivergence == FDivergence::ForwardKl ? -1 : a.fAlpha - 1;
  if (a.fDivergence == FDivergence::ReverseKl || power == 0) return {logRatio, 1};
  const double exponent = power * logRatio;
  if (exponent > kLargestExponent) return {std::expm1(kLargestExponent) / power, 0};
  return {std::expm1(exponent) / power, std::exp(exponent)};
}

ValueAndSlope logOdds(double meanLogProb) {
  constexpr double kCap = -0x1p-24;
  if (meanLogProb > kCap) return {kCap - log1mexp(kCap), 0};
  return {meanLogProb - log1mexp(meanLogProb), -1 / std::expm1(meanLogProb)};
}

ValueAndSlope smoothedSigmoidLoss(double epsilon, double u) {
  return {(1 - epsilon) * negativeLogSigmoid(u) + epsilon * negativeLogSigmoid(-u),
          epsilon * sigmoid(u) - (1 - epsilon) * sigmoid(-u)};
}

ValueAndSlope exoLoss(double epsilon, double u) {
  const double q = sigmoid(u), notQ = sigmoid(-u);
  const double logOver = -negativeLogSigmoid(u) - std::log1p(-epsilon);
  const double logOverNot = -negativeLogSigmoid(-u) - std::log(epsilon);
  return {q * logOver + notQ * logOverNot, q * notQ * (logOver - logOverNot)};
}

ValueAndSlope robustLoss(double epsilon, double u) {
  const double norm = 1 - 2 * epsilon;
  return {((1 - epsilon) * negativeLogSigmoid(u) - epsilon * negativeLogSigmoid(-u)) / norm,
          -((1 - epsilon) * sigmoid(-u) + epsilon * sigmoid(u)) / norm};
}

ValueAndSlope discopopLoss(double tau, double u) {
  const double mix = sigmoid(u / tau), rest = sigmoid(-u / tau), logistic = negativeLogSigmoid(u);
  const double mixedExponential = std::exp(-u - negativeLogSigmoid(u / tau));  // e^(−u)·mix without overflow
  return {logistic * rest + mixedExponential,
          -sigmoid(-u) * rest - logistic * mix * rest / tau + mixedExponential * (rest / tau - 1)};
}

/// The losses that are functions of the margin alone.
ValueAndSlope marginLoss(const PreferenceLoss& a, double u) {
  switch (a.kind) {
    case PreferenceKind::Hinge: return {std::max(1 - u, 0.0), u < 1 ? -1.0 : 0.0};
    case PreferenceKind::Ipo: {
      const double error = (u - 0.5) / a.beta;
      return {error * error, 2 * error / a.beta};
    }
    case PreferenceKind::ExoPair: return exoLoss(a.labelSmoothing, u);
    case PreferenceKind::Robust: return robustLoss(a.labelSmoothing, u);
    case PreferenceKind::Discopop: return discopopLoss(a.discopopTau, u);
    default: return smoothedSigmoidLoss(a.labelSmoothing, u);
  }
}

/// A pair's loss and its gradients by what it is a function of: the two rewards, or the two log-ratios.
struct PairLoss {
  double loss, dChosen, dRejected;
};

/// The losses that look at the rewards of the two answers apart.
PairLoss rewardLoss(const PreferenceLoss& a, double c, double r) {
  const auto slopeOfSigmoid = [](double x) { return sigmoid(x) * sigmoid(-x); };
  switch (a.kind) {
    case PreferenceKind::NcaPair:
      return {negativeLogSigmoid(c) + 0.5 * (negativeLogSigmoid(-c) + negativeLogSigmoid(-r)),
              0.5 * sigmoid(c) - sigmoid(-c), 0.5 * sigmoid(r)};
    case PreferenceKind::BcoPair:
      return {negativeLogSigmoid(c) + negativeLogSigmoid(-r), -sigmoid(-c), sigmoid(r)};
    case PreferenceKind::SppoHard: {
      const double winner = (c - 0.5) / a.beta, loser = (r + 0.5) / a.beta;
      return {winner * winner + loser * loser, 2 * winner / a.beta, 2 * loser / a.beta};
    }
    case PreferenceKind::ApoZero: return {sigmoid(-c) + sigmoid(r), -slopeOfSigmoid(c), slopeOfSigmoid(r)};
    default: {  // ApoDown
      const double slope = slopeOfSigmoid(c - r);
      return {sigmoid(c) + sigmoid(r - c), slopeOfSigmoid(c) - slope, slope};
    }
  }
}

/// One answer of a pair.
struct Answer {
  double logProb, logRatio;  // summed over the answer
  double length;             // what the loss divides by
  double statLength;         // what the statistics divide by
};

Answer answerOf(const PreferenceLoss& a, int64_t sequence) {
  const double logProb = at(a.logProb, sequence);
  double tokens = 1;
  if (a.lengthNormalized || a.statsPerToken) {
    if (a.tokens[sequence] < 1)
      throw Error(code::kArgument, format("preferenceLoss: tokens[%lld] is %d, expected 1 or more",
                                          static_cast<long long>(sequence), a.tokens[sequence]));
    tokens = a.tokens[sequence];
  }
  return {logProb, a.refLogProb ? logProb - at(a.refLogProb, sequence) : logProb, a.lengthNormalized ? tokens : 1,
          a.statsPerToken ? tokens : 1};
}

PairLoss pairLoss(const PreferenceLoss& a, const Answer& chosen, const Answer& rejected) {
  if (a.kind == PreferenceKind::OddsRatio) {
    const ValueAndSlope c = logOdds(chosen.logRatio / chosen.length);
    const ValueAndSlope r = logOdds(rejected.logRatio / rejected.length);
    const ValueAndSlope f = smoothedSigmoidLoss(0, c.value - r.value);
    return {f.value, f.slope * c.slope / chosen.length, -f.slope * r.slope / rejected.length};
  }
  const double chosenScale = a.beta / chosen.length, rejectedScale = a.beta / rejected.length;
  if (a.kind > PreferenceKind::OddsRatio) {
    const PairLoss f = rewardLoss(a, chosenScale * chosen.logRatio, rejectedScale * rejected.logRatio);
    return {f.loss, f.dChosen * chosenScale, f.dRejected * rejectedScale};
  }
  const ValueAndSlope c = score(a, chosen.logRatio), r = score(a, rejected.logRatio);
  const ValueAndSlope f = marginLoss(a, chosenScale * c.value - rejectedScale * r.value - a.margin);
  return {f.value, f.slope * chosenScale * c.slope, -f.slope * rejectedScale * r.slope};
}

/// order[0 … count) sorts the values: ties by index, NaN last.
template <class Value>
void sortedOrder(int32_t* order, int64_t count, const Value& value) {
  std::iota(order, order + count, 0);
  const auto before = [](double x, double y) { return std::isnan(y) ? !std::isnan(x) : x < y; };
  std::sort(order, order + count, [&](int32_t i, int32_t j) {
    const double x = value(i), y = value(j);
    if (before(x, y)) return true;
    return !before(y, x) && i < j;
  });
}

/// The summed loss of margins between sorted values; adds its gradients to dLogProb.
double sortedLoss(const PreferenceLoss& a) {
  const bool unpaired = a.kind == PreferenceKind::AotUnpaired;
  const auto reference = [&](int32_t sequence) { return a.refLogProb ? at(a.refLogProb, sequence) : 0; };
  const auto upper = [&](int32_t p) {
    const int32_t chosen = a.chosen[p];
    return at(a.logProb, chosen) - (unpaired ? reference(chosen) : at(a.logProb, a.rejected[p]));
  };
  const auto lower = [&](int32_t p) {
    const int32_t rejected = a.rejected[p];
    return (unpaired ? at(a.logProb, rejected) : reference(a.chosen[p])) - reference(rejected);
  };
  int32_t *upperOrder = a.order, *lowerOrder = a.order + a.pairs;
  sortedOrder(upperOrder, a.pairs, upper);
  sortedOrder(lowerOrder, a.pairs, lower);
  double loss = 0;
  for (int64_t k = 0; k < a.pairs; ++k) {
    const int32_t up = upperOrder[k], low = lowerOrder[k];
    const ValueAndSlope f = marginLoss(a, a.beta * (upper(up) - lower(low)) - a.margin);
    loss += f.value;
    add(a.dLogProb, a.chosen[up], a.scale * a.beta * f.slope);
    add(a.dLogProb, a.rejected[unpaired ? low : up], -a.scale * a.beta * f.slope);
  }
  return loss;
}

}  // namespace

void sequenceSum(OpContext&, const SequenceSum& a) {
  requireFloat32(a.type, "sequenceSum");
  for (int64_t s = 0; s < a.sequences; ++s) {
    double sum = 0;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t)
      if (at(a.weight, t) != 0) sum += at(a.weight, t) * at(a.x, t);
    out(a.sum)[s] = static_cast<float>(sum);
  }
}

void sequenceSumBackward(OpContext&, const SequenceSumBackward& a) {
  requireFloat32(a.type, "sequenceSumBackward");
  for (int64_t s = 0; s < a.sequences; ++s) {
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      const double base = a.base ? at(a.base, t) : 0, weight = at(a.weight, t);
      out(a.dx)[t] = static_cast<float>(weight != 0 ? base + weight * at(a.dSum, s) : base);
    }
  }
}

void wpoWeight(OpContext&, const WpoWeight& a) {
  requireFloat32(a.type, "wpoWeight");
  requirePairs("wpoWeight", a);
  for (int64_t p = 0; p < a.pairs; ++p) {
    const double exponent = meanAlignedLogProb(a, a.chosen[p]) + meanAlignedLogProb(a, a.rejected[p]);
    out(a.weight)[p] = static_cast<float>(std::exp(exponent));
  }
}

void preferenceLoss(OpContext&, const PreferenceLoss& a) {
  using Loss = PreferenceLoss;
  requireFloat32(a.type, "preferenceLoss");
  requirePairs("preferenceLoss", a);
  for (int64_t s = 0; s < a.sequences; ++s) out(a.dLogProb)[s] = a.base ? static_cast<float>(at(a.base, s)) : 0.0f;
  std::array<double, Loss::kStatCount> sums{};
  const bool sorts = a.kind == PreferenceKind::Aot || a.kind == PreferenceKind::AotUnpaired;
  if (sorts) sums[Loss::kLoss] = sortedLoss(a);
  for (int64_t p = 0; p < a.pairs; ++p) {
    const Answer chosen = answerOf(a, a.chosen[p]), rejected = answerOf(a, a.rejected[p]);
    if (!sorts) {
      const PairLoss f = pairLoss(a, chosen, rejected);
      const double weight = a.pairWeight ? at(a.pairWeight, p) : 1;
      sums[Loss::kLoss] += weight * f.loss;
      add(a.dLogProb, a.chosen[p], a.scale * weight * f.dChosen);
      add(a.dLogProb, a.rejected[p], a.scale * weight * f.dRejected);
    }
    const double chosenReward = a.beta * chosen.logRatio / chosen.statLength;
    const double rejectedReward = a.beta * rejected.logRatio / rejected.statLength;
    sums[Loss::kPairs] += 1;
    sums[Loss::kCorrect] += chosenReward > rejectedReward;
    sums[Loss::kMargin] += chosenReward - rejectedReward;
    sums[Loss::kChosenReward] += chosenReward;
    sums[Loss::kRejectedReward] += rejectedReward;
    sums[Loss::kChosenLogProb] += chosen.logProb / chosen.statLength;
    sums[Loss::kRejectedLogProb] += rejected.logProb / rejected.statLength;
  }
  writeStats(a.stats, sums);
}

void ktoLoss(OpContext&, const KtoLoss& a) {
  requireFloat32(a.type, "ktoLoss");
  std::array<double, KtoLoss::kStatCount> sums{};
  for (int64_t s = 0; s < a.sequences; ++s) {
    out(a.dLogProb)[s] = 0;
    const int32_t label = a.label[s];
    if (label < -1 || label > 1)
      throw Error(code::kArgument, format("ktoLoss: label[%lld] is %d, expected 1, -1 or 0",
                                          static_cast<long long>(s), label));
    if (label == 0) continue;
    const bool desirable = label > 0;
    const double weight = desirable ? a.desirableWeight : a.undesirableWeight;
    const double reward = a.beta * (at(a.logProb, s) - at(a.refLogProb, s));
    const double gain = label * (reward - a.beta * a.kl);
    sums[KtoLoss::kLoss] += weight * sigmoid(-gain);
    out(a.dLogProb)[s] = static_cast<float>(-a.scale * a.beta * label * weight * sigmoid(gain) * sigmoid(-gain));
    sums[desirable ? KtoLoss::kDesirable : KtoLoss::kUndesirable] += 1;
    sums[desirable ? KtoLoss::kChosenReward : KtoLoss::kRejectedReward] += reward;
    sums[desirable ? KtoLoss::kChosenLogProb : KtoLoss::kRejectedLogProb] += at(a.logProb, s);
  }
  writeStats(a.stats, sums);
}

}  // namespace rlhf::RLHF_ISA
