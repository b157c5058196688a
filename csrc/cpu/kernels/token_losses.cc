#include "cpu/kernels/token_losses.h"

#include <algorithm>
#include <cmath>

namespace rlhf::RLHF_ISA {
namespace {

double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }

double logRatio(const GroupPolicyLoss& a, int64_t t) { return at(a.logProb, t) - at(a.oldLogProb, t); }

/// log(reference ÷ policy); 0 without a reference.
double fromReference(const GroupPolicyLoss& a, int64_t t) { return a.refLogProb ? at(a.refLogProb, t) - at(a.logProb, t) : 0; }

struct Surrogate {
  double loss, slope;
  bool low, high;
};

/// `tokens` that share the ratio have a sum's slope, each the whole of it; else it is 1.
Surrogate clippedSurrogate(const GroupPolicyLoss& a, double advantage, double ratio, double tokens) {
  const double plain = -advantage * ratio;
  const double clipped = -advantage * std::clamp(ratio, a.lowestRatio, a.highestRatio);
  if (clipped > plain) return {clipped, 0, ratio < a.lowestRatio, !(ratio < a.lowestRatio)};
  return {plain, plain * tokens, false, false};
}

Surrogate truncatedSurrogate(const GroupPolicyLoss& a, double advantage, double ratio, double logProb) {
  const double slope = -std::min(ratio, a.highestRatio) * advantage;
  return {slope * logProb, slope, false, ratio > a.highestRatio};
}

}  // namespace

TokenSlope slopeOf(const TokenNllLoss& a, int64_t t) { return {static_cast<float>(-at(a.weight, t) * a.scale), 0}; }

PpoPolicyTerm termOf(const PpoPolicyLoss& a, int64_t t) {
  const double change = at(a.logProb, t) - at(a.oldLogProb, t), advantage = at(a.advantage, t);
  const double ratio = std::exp(change);
  const double plain = -advantage * ratio;
  const double clipped = -advantage * std::clamp(ratio, 1 - a.clipRange, 1 + a.clipRange);
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

SharedRatio sharedRatio(const GroupPolicyLoss& a, int64_t sequence) {
  SharedRatio shared;
  if (a.level == RatioLevel::Token) return shared;
  for (int64_t t = a.offsets[sequence]; t < a.offsets[sequence + 1]; ++t) {
    if (at(a.mask, t) == 0) continue;
    const double d = fromReference(a, t);
    shared.logRatio += logRatio(a, t), shared.kl += std::expm1(d) - d, ++shared.tokens;
  }
  if (a.level == RatioLevel::SequenceSum || shared.tokens == 0) return shared;
  shared.logRatio /= static_cast<double>(shared.tokens), shared.kl /= static_cast<double>(shared.tokens);
  return shared;
}

GroupPolicyTerm termOf(const GroupPolicyLoss& a, const SharedRatio& shared, int64_t sequence, int64_t t) {
  const double weight = at(a.weight, sequence), logProb = at(a.logProb, t);
  const double advantage = a.tokenAdvantage ? at(a.tokenAdvantage, t) : at(a.advantage, sequence);
  const double sharing = a.level == RatioLevel::SequenceSum ? static_cast<double>(shared.tokens) : 1;
  GroupPolicyTerm term;
  term.change = logRatio(a, t);
  term.ratio = std::exp(a.level == RatioLevel::Token ? term.change : shared.logRatio);
  const Surrogate surrogate = a.surrogate == PolicySurrogate::Clipped
                                  ? clippedSurrogate(a, advantage, term.ratio, sharing)
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

}  // namespace rlhf::RLHF_ISA
