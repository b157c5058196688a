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

/// The log-ratio that every token of a sequence has; not read where each has its own.
double sequenceLogRatio(const GroupPolicyLoss& a, int64_t s, int64_t& tokens) {
  double sum = 0;
  tokens = 0;
  for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t)
    if (at(a.mask, t) != 0) sum += logRatio(a, t), ++tokens;
  return a.level == RatioLevel::SequenceMean && tokens > 0 ? sum / static_cast<double>(tokens) : sum;
}

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
    int64_t tokens;
    const double shared = sequenceLogRatio(a, s, tokens);
    const double weight = at(a.weight, s), advantage = at(a.advantage, s);
    const double sharing = a.level == RatioLevel::SequenceSum ? static_cast<double>(tokens) : 1;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      if (at(a.mask, t) == 0) continue;
      const double change = logRatio(a, t), logProb = at(a.logProb, t);
      const double ratio = std::exp(a.level == RatioLevel::Token ? change : shared);
      const Surrogate surrogate = a.surrogate == PolicySurrogate::Clipped
                                      ? clippedSurrogate(a, advantage, ratio, sharing)
                                      : truncatedSurrogate(a, advantage, ratio, logProb);
      const double d = a.refLogProb ? at(a.refLogProb, t) - logProb : 0, growth = std::expm1(d);
      out(a.dLogProb)[t] = static_cast<float>(weight * (surrogate.slope - a.klCoefficient * growth));
      sums[GroupPolicyLoss::kLoss] += weight * (surrogate.loss + a.klCoefficient * (growth - d));
      sums[GroupPolicyLoss::kApproxKl] += 0.5 * change * change;
      sums[GroupPolicyLoss::kClippedLow] += surrogate.low;
      sums[GroupPolicyLoss::kClippedHigh] += surrogate.high;
      sums[GroupPolicyLoss::kRatio] += ratio;
      sums[GroupPolicyLoss::kRatioSquared] += ratio * ratio;
      sums[GroupPolicyLoss::kKl] += growth - d;
      sums[GroupPolicyLoss::kTokens] += 1;
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) out(a.stats)[i] = static_cast<float>(sums[i]);
}

}  // namespace rlhf::RLHF_ISA
