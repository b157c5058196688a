#pragma once
#include <cmath>

#include "core/device_code.h"
#include "ops/group_policy.h"
#include "ops/losses.h"

// What the losses of tokens compute of one token, in double (a ratio exp(Δ log-prob) loses nothing), for the CPU's kernels and for
// CUDA's. All of it is local to the file that includes it: the CPU's kernels are compiled once per instruction set and share no code.

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

struct PpoValueTerm {
  float slope = 0;
  double loss = 0, value = 0, target = 0, errorSquared = 0;
  bool clipped = false;
};

/// What the tokens of a sequence share where they have one ratio: its logarithm, and what a weighed KL's slope takes from all of them.
struct SharedRatio {
  double logRatio = 0, kl = 0, tokens = 0;
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

RLHF_HOST_DEVICE TokenSlope slopeOf(const TokenNllLoss& a, int64_t t) { return {static_cast<float>(-at(a.weight, t) * a.scale), 0}; }

/// Of a token in the mask.
RLHF_HOST_DEVICE PpoPolicyTerm termOf(const PpoPolicyLoss& a, int64_t t) {
  const double change = at(a.logProb, t) - at(a.oldLogProb, t), advantage = at(a.advantage, t), ratio = std::exp(change);
  const double plain = -advantage * ratio;
  const double clipped = -advantage * clip(ratio, 1 - a.clipRange, 1 + a.clipRange);
  const double bound = -advantage * a.dualClip;
  const bool clippedWins = clipped > plain;
  // dualClip is over 1 + clipRange, so where it binds the clipped branch does not win.
  const bool boundWins = a.dualClip > 0 && advantage < 0 && bound < plain;
  PpoPolicyTerm term;
  term.slope = {clippedWins || boundWins ? 0.0f : static_cast<float>(a.scale * plain), static_cast<float>(-a.entropyCoefficient * a.scale)};
  term.loss = boundWins ? bound : clippedWins ? clipped : plain;
  term.change = change, term.ratio = ratio;
  term.clipped = clippedWins, term.dualClipped = boundWins;
  return term;
}

/// Of token t, which is in the mask, and of its value, which stands at the hidden state before it.
RLHF_HOST_DEVICE PpoValueTerm termOf(const PpoValueLoss& a, int64_t t) {
  const double value = at(a.value, t - 1), old = at(a.oldValue, t - 1), target = at(a.returns, t);
  const double bounded = a.clipRange > 0 ? clip(value, old - a.clipRange, old + a.clipRange) : value;
  const double plain = (value - target) * (value - target), clipped = (bounded - target) * (bounded - target);
  const bool clippedWins = clipped > plain;
  return {clippedWins ? 0.0f : static_cast<float>(a.scale * (value - target)), 0.5 * (clippedWins ? clipped : plain), value, target,
          plain, clippedWins};
}

RLHF_HOST_DEVICE double logRatio(const GroupPolicyLoss& a, int64_t t) { return at(a.logProb, t) - at(a.oldLogProb, t); }

/// log(reference ÷ policy); 0 without a reference.
RLHF_HOST_DEVICE double fromReference(const GroupPolicyLoss& a, int64_t t) {
  return a.refLogProb ? at(a.refLogProb, t) - at(a.logProb, t) : 0;
}

/// Adds a token in the mask to what its sequence shares.
RLHF_HOST_DEVICE void addToken(SharedRatio& sums, const GroupPolicyLoss& a, int64_t t) {
  const double d = fromReference(a, t);
  sums.logRatio += logRatio(a, t), sums.kl += std::expm1(d) - d, sums.tokens += 1;
}

/// What the sequence shares, from the sums over its tokens; nothing where every token has a ratio of its own.
RLHF_HOST_DEVICE SharedRatio sharedOf(const GroupPolicyLoss& a, const SharedRatio& sums) {
  if (a.level != RatioLevel::SequenceMean || sums.tokens == 0) return sums;
  return {sums.logRatio / sums.tokens, sums.kl / sums.tokens, sums.tokens};
}

struct Surrogate {
  double loss, slope;
  bool low, high;
};

/// `tokens` that share the ratio have a sum's slope, each the whole of it; else it is 1.
RLHF_HOST_DEVICE Surrogate surrogateOf(const GroupPolicyLoss& a, double advantage, double ratio, double logProb, double tokens) {
  const bool isLow = ratio < a.lowestRatio, isHigh = ratio > a.highestRatio;
  if (a.surrogate == PolicySurrogate::Truncated) {
    const double slope = -(isHigh ? a.highestRatio : ratio) * advantage;
    return {slope * logProb, slope, false, isHigh};
  }
  const double plain = -advantage * ratio, clipped = -advantage * clip(ratio, a.lowestRatio, a.highestRatio);
  if (clipped > plain) return {clipped, 0, isLow, !isLow};
  return {plain, plain * tokens, false, false};
}

/// Of a token in the mask.
RLHF_HOST_DEVICE_SHARED GroupPolicyTerm termOf(const GroupPolicyLoss& a, const SharedRatio& shared, int64_t sequence, int64_t t) {
  const double weight = at(a.weight, sequence);
  const double advantage = a.tokenAdvantage ? at(a.tokenAdvantage, t) : at(a.advantage, sequence);
  GroupPolicyTerm term;
  term.change = logRatio(a, t);
  term.ratio = std::exp(a.level == RatioLevel::Token ? term.change : shared.logRatio);
  const Surrogate surrogate =
      surrogateOf(a, advantage, term.ratio, at(a.logProb, t), a.level == RatioLevel::SequenceSum ? shared.tokens : 1);
  term.low = surrogate.low, term.high = surrogate.high;
  const double d = fromReference(a, t), growth = std::expm1(d);
  term.kl = growth - d;
  const double klWeight = a.weighKl ? term.ratio : 1;
  const double throughRatio = !a.weighKl ? 0 : a.level == RatioLevel::Token ? term.kl : shared.kl;
  term.slope.logProb = static_cast<float>(weight * (surrogate.slope + a.klCoefficient * klWeight * (throughRatio - growth)));
  term.loss = weight * (surrogate.loss + a.klCoefficient * klWeight * term.kl);
  return term;
}

/// Adds what a token has to the sums that the op reports.
RLHF_HOST_DEVICE void addSums(const PpoValueTerm& term, double* sums) {
  sums[PpoValueLoss::kLoss] += term.loss;
  sums[PpoValueLoss::kClipped] += term.clipped;
  sums[PpoValueLoss::kValue] += term.value;
  sums[PpoValueLoss::kReturn] += term.target;
  sums[PpoValueLoss::kReturnSquared] += term.target * term.target;
  sums[PpoValueLoss::kErrorSquared] += term.errorSquared;
  sums[PpoValueLoss::kTokens] += 1;
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
