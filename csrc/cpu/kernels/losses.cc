#include <array>
#include <cmath>

#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/token_losses.h"

// Per-token losses read a few numbers per token, so plain loops on the calling thread do. Arithmetic and sums
// are in double: a ratio exp(Δ log-prob) loses nothing, and sums do not depend on a vector width.

namespace rlhf::RLHF_ISA {
namespace {

const float* in(const void* array) { return static_cast<const float*>(array); }
float* out(void* array) { return static_cast<float*>(array); }

template <size_t Count>
void writeStats(void* stats, const std::array<double, Count>& sums) {
  for (size_t i = 0; i < Count; ++i) out(stats)[i] = static_cast<float>(sums[i]);
}

/// V of token t is that of the hidden state before it.
int64_t valueIndex(const char* op, int64_t t, int64_t firstOfSequence) {
  if (t > firstOfSequence) return t - 1;
  throw Error(code::kArgument,
              format("%s: mask[%lld] is 1 at the first token of a sequence, where nothing is predicted", op,
                     static_cast<long long>(t)));
}

/// KL(policy ‖ reference) at one token from d = refLogProb − logProb.
double klEstimate(KlEstimator estimator, double d) {
  switch (estimator) {
    case KlEstimator::K1: return -d;
    case KlEstimator::K2: return 0.5 * d * d;
    case KlEstimator::K3: return std::expm1(d) - d;
  }
  return 0;
}

}  // namespace

void whiten(OpContext&, const Whiten& a) {
  requireFloat32(a.type, "whiten");
  const float *mask = in(a.mask), *x = in(a.x);
  double sum = 0, squares = 0;
  int64_t selected = 0;
  for (int64_t i = 0; i < a.count; ++i)
    if (mask[i] != 0) sum += x[i], ++selected;
  const double mean = selected > 0 ? sum / static_cast<double>(selected) : 0;
  for (int64_t i = 0; i < a.count; ++i)
    if (mask[i] != 0) squares += (x[i] - mean) * (x[i] - mean);
  const double variance = selected > 1 ? squares / static_cast<double>(selected - 1) : 0;
  const double rstd = 1 / std::sqrt(variance + a.eps), shift = a.shiftMean ? 0 : mean;
  for (int64_t i = 0; i < a.count; ++i)
    out(a.y)[i] = mask[i] != 0 ? static_cast<float>((x[i] - mean) * rstd + shift) : 0.0f;
}

void klReward(OpContext&, const KlReward& a) {
  requireFloat32(a.type, "klReward");
  for (int64_t s = 0; s < a.sequences; ++s) {
    int64_t last = -1;
    double lastReward = 0;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      const bool counted = in(a.mask)[t] != 0;
      const double d = static_cast<double>(in(a.refLogProb)[t]) - in(a.logProb)[t];
      const double kl = counted ? klEstimate(a.estimator, d) : 0, reward = -a.klCoefficient * kl;
      out(a.kl)[t] = static_cast<float>(kl);
      out(a.reward)[t] = counted ? static_cast<float>(reward) : 0.0f;
      if (counted) last = t, lastReward = reward;
    }
    if (last >= 0) out(a.reward)[last] = static_cast<float>(lastReward + in(a.score)[s]);
  }
}

void gae(OpContext&, const Gae& a) {
  requireFloat32(a.type, "gae");
  for (int64_t s = 0; s < a.sequences; ++s) {
    double nextValue = 0, nextAdvantage = 0;
    for (int64_t t = a.offsets[s + 1] - 1; t >= a.offsets[s]; --t) {
      out(a.advantage)[t] = 0;
      out(a.returns)[t] = 0;
      if (in(a.mask)[t] == 0) continue;
      const double value = in(a.value)[valueIndex("gae", t, a.offsets[s])];
      const double delta = in(a.reward)[t] + a.gamma * nextValue - value;
      nextAdvantage = delta + a.gamma * a.lambda * nextAdvantage;
      nextValue = value;
      out(a.advantage)[t] = static_cast<float>(nextAdvantage);
      out(a.returns)[t] = static_cast<float>(nextAdvantage + value);
    }
  }
}

void ppoPolicyLoss(OpContext&, const PpoPolicyLoss& a) {
  requireFloat32(a.type, "ppoPolicyLoss");
  std::array<double, PpoPolicyLoss::kStatCount> sums{};
  for (int64_t t = 0; t < a.rows; ++t) {
    out(a.dLogProb)[t] = 0;
    if (a.dEntropy) out(a.dEntropy)[t] = 0;
    if (in(a.mask)[t] == 0) continue;
    const token_loss::PpoPolicyTerm term = termOf(a, t);
    out(a.dLogProb)[t] = term.slope.logProb;
    if (a.dEntropy) out(a.dEntropy)[t] = term.slope.entropy;
    sums[PpoPolicyLoss::kLoss] += term.loss;
    sums[PpoPolicyLoss::kApproxKl] += 0.5 * term.change * term.change;
    sums[PpoPolicyLoss::kClipped] += term.clipped;
    sums[PpoPolicyLoss::kRatio] += term.ratio;
    sums[PpoPolicyLoss::kRatioSquared] += term.ratio * term.ratio;
    if (a.entropy) sums[PpoPolicyLoss::kEntropy] += in(a.entropy)[t];
    sums[PpoPolicyLoss::kTokens] += 1;
    sums[PpoPolicyLoss::kDualClipped] += term.dualClipped;
  }
  writeStats(a.stats, sums);
}

void ppoValueLoss(OpContext&, const PpoValueLoss& a) {
  requireFloat32(a.type, "ppoValueLoss");
  std::array<double, PpoValueLoss::kStatCount> sums{};
  std::fill_n(out(a.dValue), a.rows, 0.0f);
  for (int64_t t = 0; t < a.rows; ++t) {
    if (in(a.mask)[t] == 0) continue;
    const int64_t at = valueIndex("ppoValueLoss", t, 0);
    const token_loss::PpoValueTerm term = token_loss::termOf(a, t);
    out(a.dValue)[at] = term.slope;
    token_loss::addSums(term, sums.data());
  }
  writeStats(a.stats, sums);
}

void tokenNllLoss(OpContext&, const TokenNllLoss& a) {
  requireFloat32(a.type, "tokenNllLoss");
  std::array<double, TokenNllLoss::kStatCount> sums{};
  for (int64_t t = 0; t < a.rows; ++t) {
    const double weight = in(a.weight)[t];
    out(a.dLogProb)[t] = slopeOf(a, t).logProb;
    sums[TokenNllLoss::kLoss] -= weight * in(a.logProb)[t];
    sums[TokenNllLoss::kWeight] += weight;
  }
  writeStats(a.stats, sums);
}

}  // namespace rlhf::RLHF_ISA
