// Losses of tokens, in double as on the CPU: a ratio exp(Δ log-prob) loses nothing. A thread per token; statistics as in sums.cuh.

#include "cuda/kernels.h"
#include "cuda/sums.cuh"

namespace rlhf::cuda {
namespace {

// All arrays here have the accumulator's type.
RLHF_DEVICE double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }
RLHF_DEVICE float& out(void* array, int64_t index) { return static_cast<float*>(array)[index]; }

RLHF_DEVICE double clip(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

struct PolicyToken {
  PpoPolicyLoss a;

  RLHF_DEVICE void operator()(int64_t t, double (&sums)[PpoPolicyLoss::kStatCount]) const {
    const bool counts = at(a.mask, t) != 0;
    if (a.dEntropy) out(a.dEntropy, t) = counts ? static_cast<float>(-a.entropyCoefficient * a.scale) : 0.0f;
    if (!counts) {
      out(a.dLogProb, t) = 0;
      return;
    }
    const double change = at(a.logProb, t) - at(a.oldLogProb, t), advantage = at(a.advantage, t), ratio = exp(change);
    const double plain = -advantage * ratio;
    const double clipped = -advantage * clip(ratio, 1 - a.clipRange, 1 + a.clipRange);
    const double bound = -advantage * a.dualClip;
    const bool clippedWins = clipped > plain;
    const bool boundWins = a.dualClip > 0 && advantage < 0 && bound < plain;
    out(a.dLogProb, t) = clippedWins || boundWins ? 0.0f : static_cast<float>(a.scale * plain);
    sums[PpoPolicyLoss::kLoss] += boundWins ? bound : clippedWins ? clipped : plain;
    sums[PpoPolicyLoss::kApproxKl] += 0.5 * change * change;
    sums[PpoPolicyLoss::kClipped] += clippedWins;
    sums[PpoPolicyLoss::kRatio] += ratio;
    sums[PpoPolicyLoss::kRatioSquared] += ratio * ratio;
    if (a.entropy) sums[PpoPolicyLoss::kEntropy] += at(a.entropy, t);
    sums[PpoPolicyLoss::kTokens] += 1;
    sums[PpoPolicyLoss::kDualClipped] += boundWins;
  }
};

/// Element i is the value at i: that of token i + 1. The first token of all has none, and makes the loss NaN where it is masked in.
struct ValueOfNextToken {
  PpoValueLoss a;

  RLHF_DEVICE void operator()(int64_t i, double (&sums)[PpoValueLoss::kStatCount]) const {
    if (i == 0 && at(a.mask, 0) != 0) sums[PpoValueLoss::kLoss] = NAN;
    const int64_t t = i + 1;
    if (t == a.rows || at(a.mask, t) == 0) {
      out(a.dValue, i) = 0;
      return;
    }
    const double value = at(a.value, i), old = at(a.oldValue, i), target = at(a.returns, t);
    const double bounded = a.clipRange > 0 ? clip(value, old - a.clipRange, old + a.clipRange) : value;
    const double plain = (value - target) * (value - target), clipped = (bounded - target) * (bounded - target);
    const bool clippedWins = clipped > plain;
    out(a.dValue, i) = clippedWins ? 0.0f : static_cast<float>(a.scale * (value - target));
    sums[PpoValueLoss::kLoss] += 0.5 * (clippedWins ? clipped : plain);
    sums[PpoValueLoss::kClipped] += clippedWins;
    sums[PpoValueLoss::kValue] += value;
    sums[PpoValueLoss::kReturn] += target;
    sums[PpoValueLoss::kReturnSquared] += target * target;
    sums[PpoValueLoss::kErrorSquared] += plain;
    sums[PpoValueLoss::kTokens] += 1;
  }
};

struct NllToken {
  TokenNllLoss a;

  RLHF_DEVICE void operator()(int64_t t, double (&sums)[TokenNllLoss::kStatCount]) const {
    const double weight = at(a.weight, t);
    out(a.dLogProb, t) = static_cast<float>(-weight * a.scale);
    sums[TokenNllLoss::kLoss] -= weight * at(a.logProb, t);
    sums[TokenNllLoss::kWeight] += weight;
  }
};

}  // namespace

void ppoPolicyLoss(OpContext& context, const PpoPolicyLoss& a) {
  requireFloatSums(a.type, "ppoPolicyLoss");
  launchSumEach<PpoPolicyLoss::kStatCount>(context, "ppoPolicyLoss", a.rows, PolicyToken{a}, static_cast<float*>(a.stats));
}

void ppoValueLoss(OpContext& context, const PpoValueLoss& a) {
  requireFloatSums(a.type, "ppoValueLoss");
  launchSumEach<PpoValueLoss::kStatCount>(context, "ppoValueLoss", a.rows, ValueOfNextToken{a}, static_cast<float*>(a.stats));
}

void tokenNllLoss(OpContext& context, const TokenNllLoss& a) {
  requireFloatSums(a.type, "tokenNllLoss");
  launchSumEach<TokenNllLoss::kStatCount>(context, "tokenNllLoss", a.rows, NllToken{a}, static_cast<float*>(a.stats));
}

}  // namespace rlhf::cuda
