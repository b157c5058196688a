#pragma once
#include <cmath>
#include <numbers>

#include "core/device_code.h"
#include "ops/preference.h"

// What preferenceLoss and ktoLoss compute of one pair or answer, in double, for the CPU's kernels and for CUDA's. All of it is local to
// the file that includes it: the CPU's kernels are compiled once per instruction set and share no code.

namespace rlhf::preference {
namespace {

/// All arrays have the accumulator's type, which is float32 where these functions are used.
RLHF_HOST_DEVICE double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }

/// 1 / (1 + e^(−x)). Where e^(−x) overflows it is 0, as it should be.
RLHF_HOST_DEVICE double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// −log σ(x) without overflow on either side.
RLHF_HOST_DEVICE double negativeLogSigmoid(double x) { return std::log1p(std::exp(-std::fabs(x))) + (x < 0 ? -x : 0.0); }

/// log(1 − e^x) for x < 0 (Mächler, "Accurately computing log(1 − exp(−|a|))", 2012).
RLHF_HOST_DEVICE double log1mexp(double x) {
  return x < -std::numbers::ln2 ? std::log1p(-std::exp(x)) : std::log(-std::expm1(x));
}

struct ValueAndSlope {
  double value, slope;
};

/// x of a log-ratio under the f-divergence.
RLHF_HOST_DEVICE ValueAndSlope score(const PreferenceLoss& a, double logRatio) {
  constexpr double kLargestExponent = 80;
  if (a.fDivergence == FDivergence::Js)
    return {std::numbers::ln2 - negativeLogSigmoid(logRatio), sigmoid(-logRatio)};
  const double power = a.fDivergence == FDivergence::ForwardKl ? -1 : a.fAlpha - 1;
  if (a.fDivergence == FDivergence::ReverseKl || power == 0) return {logRatio, 1};
  const double exponent = power * logRatio;
  if (exponent > kLargestExponent) return {std::expm1(kLargestExponent) / power, 0};
  return {std::expm1(exponent) / power, std::exp(exponent)};
}

RLHF_HOST_DEVICE ValueAndSlope logOdds(double meanLogProb) {
  constexpr double kCap = -0x1p-24;
  if (meanLogProb > kCap) return {kCap - log1mexp(kCap), 0};
  return {meanLogProb - log1mexp(meanLogProb), -1 / std::expm1(meanLogProb)};
}

RLHF_HOST_DEVICE ValueAndSlope smoothedSigmoidLoss(double epsilon, double u) {
  return {(1 - epsilon) * negativeLogSigmoid(u) + epsilon * negativeLogSigmoid(-u),
          epsilon * sigmoid(u) - (1 - epsilon) * sigmoid(-u)};
}

RLHF_HOST_DEVICE ValueAndSlope exoLoss(double epsilon, double u) {
  const double q = sigmoid(u), notQ = sigmoid(-u);
  const double logOver = -negativeLogSigmoid(u) - std::log1p(-epsilon);
  const double logOverNot = -negativeLogSigmoid(-u) - std::log(epsilon);
  return {q * logOver + notQ * logOverNot, q * notQ * (logOver - logOverNot)};
}

RLHF_HOST_DEVICE ValueAndSlope robustLoss(double epsilon, double u) {
  const double norm = 1 - 2 * epsilon;
  return {((1 - epsilon) * negativeLogSigmoid(u) - epsilon * negativeLogSigmoid(-u)) / norm,
          -((1 - epsilon) * sigmoid(-u) + epsilon * sigmoid(u)) / norm};
}

RLHF_HOST_DEVICE ValueAndSlope discopopLoss(double tau, double u) {
  const double mix = sigmoid(u / tau), rest = sigmoid(-u / tau), logistic = negativeLogSigmoid(u);
  const double mixedExponential = std::exp(-u - negativeLogSigmoid(u / tau));  // e^(−u)·mix without overflow
  return {logistic * rest + mixedExponential,
          -sigmoid(-u) * rest - logistic * mix * rest / tau + mixedExponential * (rest / tau - 1)};
}

/// The losses that are functions of the margin alone.
RLHF_HOST_DEVICE ValueAndSlope marginLoss(const PreferenceLoss& a, double u) {
  switch (a.kind) {
    case PreferenceKind::Hinge: return {u > 1 ? 0.0 : 1 - u, u < 1 ? -1.0 : 0.0};
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
RLHF_HOST_DEVICE PairLoss rewardLoss(const PreferenceLoss& a, double c, double r) {
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

RLHF_HOST_DEVICE_SHARED PairLoss pairLoss(const PreferenceLoss& a, const Answer& chosen, const Answer& rejected) {
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

/// The statistics of a pair but its loss.
RLHF_HOST_DEVICE void addStatistics(const PreferenceLoss& a, const Answer& chosen, const Answer& rejected, double* sums) {
  const double chosenReward = a.beta * chosen.logRatio / chosen.statLength;
  const double rejectedReward = a.beta * rejected.logRatio / rejected.statLength;
  sums[PreferenceLoss::kPairs] += 1;
  sums[PreferenceLoss::kCorrect] += chosenReward > rejectedReward;
  sums[PreferenceLoss::kMargin] += chosenReward - rejectedReward;
  sums[PreferenceLoss::kChosenReward] += chosenReward;
  sums[PreferenceLoss::kRejectedReward] += rejectedReward;
  sums[PreferenceLoss::kChosenLogProb] += chosen.logProb / chosen.statLength;
  sums[PreferenceLoss::kRejectedLogProb] += rejected.logProb / rejected.statLength;
}

/// The two values of a pair that Aot and AotUnpaired sort.
struct SortedValues {
  const PreferenceLoss& a;

  RLHF_HOST_DEVICE bool isUnpaired() const { return a.kind == PreferenceKind::AotUnpaired; }
  RLHF_HOST_DEVICE double upper(int32_t p) const {
    return logProb(a.chosen[p]) - (isUnpaired() ? reference(a.chosen[p]) : logProb(a.rejected[p]));
  }
  RLHF_HOST_DEVICE double lower(int32_t p) const {
    return (isUnpaired() ? logProb(a.rejected[p]) : reference(a.chosen[p])) - reference(a.rejected[p]);
  }

 private:
  /// NaN for what is no sequence of the batch.
  RLHF_HOST_DEVICE double ofSequence(const void* array, int32_t sequence) const {
    return sequence >= 0 && sequence < a.sequences ? at(array, sequence) : NAN;
  }
  RLHF_HOST_DEVICE double logProb(int32_t sequence) const { return ofSequence(a.logProb, sequence); }
  RLHF_HOST_DEVICE double reference(int32_t sequence) const { return a.refLogProb ? ofSequence(a.refLogProb, sequence) : 0; }
};

/// Whether value x of pair i is sorted before value y of pair j: ties by pair, NaN last.
RLHF_HOST_DEVICE bool isBefore(double x, int32_t i, double y, int32_t j) {
  if (x < y || (x == x && y != y)) return true;
  return !(y < x || (y == y && x != x)) && i < j;
}

/// The k-th margin between sorted values, and the sequences that its gradient belongs to.
struct SortedPair {
  ValueAndSlope loss;
  int32_t chosen, rejected;
};

RLHF_HOST_DEVICE SortedPair sortedPair(const PreferenceLoss& a, int64_t k) {
  const SortedValues values{a};
  const int32_t up = a.order[k], low = a.order[a.pairs + k];
  const double margin = a.beta * (values.upper(up) - values.lower(low)) - a.margin;
  return {marginLoss(a, margin), a.chosen[up], a.rejected[values.isUnpaired() ? low : up]};
}

/// Adds an answer's statistics; returns its gradient.
RLHF_HOST_DEVICE double ktoAnswer(const KtoLoss& a, int64_t s, double* sums) {
  const int32_t label = a.label[s];
  if (label == 0) return 0;
  const bool desirable = label > 0;
  const double weight = desirable ? a.desirableWeight : a.undesirableWeight;
  const double reward = a.beta * (at(a.logProb, s) - at(a.refLogProb, s));
  const double gain = label * (reward - a.beta * a.kl);
  sums[KtoLoss::kLoss] += weight * sigmoid(-gain);
  sums[KtoLoss::kDesirable] += desirable;
  sums[KtoLoss::kUndesirable] += !desirable;
  sums[KtoLoss::kChosenReward] += desirable ? reward : 0;
  sums[KtoLoss::kRejectedReward] += desirable ? 0 : reward;
  sums[KtoLoss::kChosenLogProb] += desirable ? at(a.logProb, s) : 0;
  sums[KtoLoss::kRejectedLogProb] += desirable ? 0 : at(a.logProb, s);
  return -a.scale * a.beta * label * weight * sigmoid(gain) * sigmoid(-gain);
}

}  // namespace
}  // namespace rlhf::preference
