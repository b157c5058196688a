#include <algorithm>
#include <array>
#include <cmath>

#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"

// A few numbers per token: plain loops on the calling thread, in double as in losses.cc.

namespace rlhf::RLHF_ISA {
namespace {

double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }
float* out(void* array) { return static_cast<float*>(array); }

double logRatio(const GroupPolicyLoss& a, int64_t t) { return at(a.logProb, t) - at(a.oldLogProb, t); }

/// log(reference ÷ policy); 0 without a reference.
double fromReference(const GroupPolicyLoss& a, int64_t t) { return a.refLogProb ? at(a.refLogProb, t) - at(a.logProb, t) : 0; }

/// What the tokens of a sequence share where they have one ratio: its logarithm, and what a weighed KL's slope takes from all of them.
struct Shared {
  double logRatio = 0, kl = 0;
  int64_t tokens = 0;

  Shared(const GroupPolicyLoss& a, int64_t s) {
    if (a.level == RatioLevel::Token) return;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      if (at(a.mask, t) == 0) continue;
      const double d = fromReference(a, t);
      logRatio += rlhf::RLHF_ISA::logRatio(a, t), kl += std::expm1(d) - d, ++tokens;
    }
    if (a.level == RatioLevel::SequenceSum || tokens == 0) return;
    logRatio /= static_cast<double>(tokens), kl /= static_cast<double>(tokens);
  }
};

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

void groupPolicyLoss(OpContext&, const GroupPolicyLoss& a) {
  requireFloat32(a.type, "groupPolicyLoss");
  std::array<double, GroupPolicyLoss::kStatCount> sums{};
  std::fill_n(out(a.dLogProb), a.rows, 0.0f);
  for (int64_t s = 0; s < a.sequences; ++s) {
    const Shared shared(a, s);
    const double weight = at(a.weight, s);
    const double sharing = a.level == RatioLevel::SequenceSum ? static_cast<double>(shared.tokens) : 1;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      if (at(a.mask, t) == 0) continue;
      const double change = logRatio(a, t), logProb = at(a.logProb, t);
      const double advantage = a.tokenAdvantage ? at(a.tokenAdvantage, t) : at(a.advantage, s);
      const double ratio = std::exp(a.level == RatioLevel::Token ? change : shared.logRatio);
      const Surrogate surrogate = a.surrogate == PolicySurrogate::Clipped
                                      ? clippedSurrogate(a, advantage, ratio, sharing)
                                      : truncatedSurrogate(a, advantage, ratio, logProb);
      const double d = fromReference(a, t), growth = std::expm1(d), kl = growth - d;
      const double klWeight = a.weighKl ? ratio : 1;
      const double throughRatio = !a.weighKl ? 0 : a.level == RatioLevel::Token ? kl : shared.kl;
      const double klSlope = klWeight * (throughRatio - growth);
      out(a.dLogProb)[t] = static_cast<float>(weight * (surrogate.slope + a.klCoefficient * klSlope));
      sums[GroupPolicyLoss::kLoss] += weight * (surrogate.loss + a.klCoefficient * klWeight * kl);
      sums[GroupPolicyLoss::kApproxKl] += 0.5 * change * change;
      sums[GroupPolicyLoss::kClippedLow] += surrogate.low;
      sums[GroupPolicyLoss::kClippedHigh] += surrogate.high;
      sums[GroupPolicyLoss::kRatio] += ratio;
      sums[GroupPolicyLoss::kRatioSquared] += ratio * ratio;
      sums[GroupPolicyLoss::kKl] += kl;
      sums[GroupPolicyLoss::kTokens] += 1;
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) out(a.stats)[i] = static_cast<float>(sums[i]);
}

}  // namespace rlhf::RLHF_ISA
