#pragma once
#include <cmath>

#include "core/device_code.h"
#include "ops/group_policy.h"
#include "ops/losses.h"

// What the losses of tokens compute of one token, in double, for the CPU's kernels and for CUDA's: a ratio exp(Δ log-prob) loses nothing.
// All functions are local to the file that includes it: the CPU's kernels are compiled once per instruction set and share no code.

namespace rlhf::token_loss {

/// What a loss gives for one token: the gradients of its log-prob and its entropy.
struct TokenSlope {
  float logProb = 0, entropy = 0;
};

struct PpoPolicyTerm {
  TokenSlope slope;
  double loss = 0, change = 0, ratio = 0;
  bool clipped = false, dualClipped = false;
};

/// What the tokens of a sequence share where they have one ratio: its logarithm, what a weighed KL's slope takes from all of them, and how
/// many of them have a slope that is each the whole of it, where the ratio is their sum's.
struct SharedRatio {
  double logRatio = 0, kl = 0, tokens = 1;
};

struct GroupPolicyTerm {
  TokenSlope slope;
  double loss = 0, change = 0, ratio = 0, kl = 0;
  bool low = false, high = false;
};

namespace {

/// All arrays have the accumulator's type, which is float32 where these functions are used.
RLHF_HOST_DEVICE double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }

RLHF_HOST_DEVICE double clip(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

RLHF_HOST_DEVICE TokenSlope nllSlope(const TokenNllLoss& a, int64_t t) {
  return {static_cast<float>(-at(a.weight, t) * a.scale), 0};
}

RLHF_HOST_DEVICE void addSums(const TokenNllLoss& a, int64_t t, double* sums) {
  sums[TokenNllLoss::kLoss] -= at(a.weight, t) * at(a.logProb, t);
  sums[TokenNllLoss::kWeight] += at(a.weight, t);
}

/// Of a token in the mask.
RLHF_HOST_DEVICE PpoPolicyTerm ppoPolicyTerm(const PpoPolicyLoss& a, int64_t t) {
  const double change = at(a.logProb, t) - at(a.oldLogProb, t), advantage = at(a.advantage, t);
  const double ratio = std::exp(change);
  const double plain = -advantage * ratio;
  const double clipped = -advantage * clip(ratio, 1 - a.clipRange, 1 + a.clipRange);
  const double bound = -advantage * a.dualClip;
  const bool clippedWins = clipped > plain;
  // dualClip is over 1 + clipRange, so where it binds the clipped branch does not win.
  const bool boundWins = a.dualClip > 0 && advantage < 0 && bound < plain;
  PpoPolicyTerm term;
  term.slope = {clippedWins || boundWins ? 0.0f : static_cast<float>(a.scale * plain),
                static_cast<float>(-a.entropyCoefficient * a.scale)};
  term.loss = boundWins ? bound : clippedWins ? clipped : plain;
  term.change = change, term.ratio = ratio;
  term.clipped = clippedWins, term.dualClipped = boundWins;
  return term;
}

RLHF_HOST_DEVICE void addSums(const PpoPolicyLoss& a, const PpoPolicyTerm& term, int64_t t, double* sums) {
  sums[PpoPolicyLoss::kLoss] += term.loss;
  sums[PpoPolicyLoss::kApproxKl] += 0.5 * term.change * term.change;
  sums[PpoPolicyLoss::kClipped] += term.clipped;
  sums[PpoPolicyLoss::kRatio] += term.ratio;
  sums[PpoPolicyLoss::kRatioSquared] += term.ratio * term.ratio;
  if (a.entropy) sums[PpoPolicyLoss::kEntropy] += at(a.entropy, t);
  sums[PpoPolicyLoss::kTokens] += 1;
  sums[PpoPolicyLoss::kDualClipped] += term.dualClipped;
}

/// Adds what token t, in the mask, has to the sums of the value loss; returns the gradient of its value, the one at t − 1.
RLHF_HOST_DEVICE float addValueLoss(const PpoValueLoss& a, int64_t t, double* sums) {
  const double value = at(a.value, t - 1), old = at(a.oldValue, t - 1), target = at(a.returns, t);
  const double bounded = a.clipRange > 0 ? clip(value, old - a.clipRange, old + a.clipRange) : value;
  const double plain = (value - target) * (value - target), clipped = (bounded - target) * (bounded - target);
  const bool clippedWins = clipped > plain;
  sums[PpoValueLoss::kLoss] += 0.5 * (clippedWins ? clipped : plain);
  sums[PpoValueLoss::kClipped] += clippedWins;
  sums[PpoValueLoss::kValue] += value;
  sums[PpoValueLoss::kReturn] += target;
  sums[PpoValueLoss::kReturnSquared] += target * target;
  sums[PpoValueLoss::kErrorSquared] += plain;
  sums[PpoValueLoss::kTokens] += 1;
  return clippedWins ? 0.0f : static_cast<float>(a.scale * (value - target));
}

RLHF_HOST_DEVICE double logRatio(const GroupPolicyLoss& a, int64_t t) { return at(a.logProb, t) - at(a.oldLogProb, t); }

/// log(reference ÷ policy); 0 without a reference.
RLHF_HOST_DEVICE double fromReference(const GroupPolicyLoss& a, int64_t t) {
  return a.refLogProb ? at(a.refLogProb, t) - at(a.logProb, t) : 0;
}

/// From sums over the sequence's tokens in the mask: of log-ratios, of KLs, and their number.
RLHF_HOST_DEVICE SharedRatio sharedRatioOf(RatioLevel level, const double (&sums)[3]) {
  if (level == RatioLevel::SequenceSum || sums[2] == 0) return {sums[0], sums[1], sums[2]};
  return {sums[0] / sums[2], sums[1] / sums[2], 1};
}

RLHF_HOST_DEVICE void addShared(const GroupPolicyLoss& a, int64_t t, double (&sums)[3]) {
  const double d = fromReference(a, t);
  sums[0] += logRatio(a, t), sums[1] += std::expm1(d) - d, sums[2] += 1;
}

struct Surrogate {
  double loss, slope;
  bool low, high;
};

RLHF_HOST_DEVICE Surrogate clippedSurrogate(const GroupPolicyLoss& a, double advantage, double ratio, double tokens) {
  const double plain = -advantage * ratio;
  const double clipped = -advantage * clip(ratio, a.lowestRatio, a.highestRatio);
  if (clipped > plain) return {clipped, 0, ratio < a.lowestRatio, !(ratio < a.lowestRatio)};
  return {plain, plain * tokens, false, false};
}

RLHF_HOST_DEVICE Surrogate truncatedSurrogate(const GroupPolicyLoss& a, double advantage, double ratio, double logProb) {
  const bool isHigh = ratio > a.highestRatio;
  const double slope = -(isHigh ? a.highestRatio : ratio) * advantage;
  return {slope * logProb, slope, false, isHigh};
}

/// Of a token in the mask.
RLHF_HOST_DEVICE GroupPolicyTerm groupPolicyTerm(const GroupPolicyLoss& a, const SharedRatio& shared, int64_t sequence, int64_t t) {
  const double weight = at(a.weight, sequence), logProb = at(a.logProb, t);
  const double advantage = a.tokenAdvantage ? at(a.tokenAdvantage, t) : at(a.advantage, sequence);
  GroupPolicyTerm term;
  term.change = logRatio(a, t);
  term.ratio = std::exp(a.level == RatioLevel::Token ? term.change : shared.logRatio);
  const Surrogate surrogate = a.surrogate == PolicySurrogate::Clipped
                                  ? clippedSurrogate(a, advantage, term.ratio, shared.tokens)
                                  : truncatedSurrogate(a, advantage, term.ratio, logProb);
  term.low = surrogate.low, term.high = surrogate.high;
  const double d = fromReference(a, t), growth = std::expm1(d);
  term.kl = growth - d;
  const double klWeight = a.weighKl ? term.ratio : 1;
  const double throughRatio = !a.weighKl ? 0 : a.level == RatioLevel::Token ? term.kl : shared.kl;
  const double klSlope = klWeight * (throughRatio - growth);
  term.slope.logProb = static_cast<float>(weight * (surrogate.slope + a.klCoefficient * klSlope));
  term.loss = weight * (surrogate.loss + a.klCoefficient * klWeight * term.kl);
  return term;
}

RLHF_HOST_DEVICE void addSums(const GroupPolicyTerm& term, double* sums) {
  sums[GroupPolicyLoss::kLoss] += term.loss;
  sums[GroupPolicyLoss::kApproxKl] += 0.5 * term.change * term.change;
  sums[GroupPolicyLoss::kClippedLow] += term.low;
  sums[GroupPolicyLoss::kClippedHigh] += term.high;
  sums[GroupPolicyLoss::kRatio] += term.ratio;
  sums[GroupPolicyLoss::kRatioSquared] += term.ratio * term.ratio;
  sums[GroupPolicyLoss::kKl] += term.kl;
  sums[GroupPolicyLoss::kTokens] += 1;
}

}  // namespace
}  // namespace rlhf::token_loss
