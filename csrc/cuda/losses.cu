// Losses of tokens, in double as on the CPU: a ratio exp(Δ log-prob) loses nothing. A thread per token; statistics as in sums.cuh.

#include "cuda/kernels.h"
#include "cuda/sums.cuh"
#include "ops/token_loss_math.h"

namespace rlhf::cuda {
namespace {

using token_loss::at;

RLHF_DEVICE float& out(void* array, int64_t index) { return static_cast<float*>(array)[index]; }

struct PolicyToken {
  PpoPolicyLoss a;

  RLHF_DEVICE void operator()(int64_t t, double (&sums)[PpoPolicyLoss::kStatCount]) const {
    const bool counts = at(a.mask, t) != 0;
    const token_loss::PpoPolicyTerm term = counts ? token_loss::termOf(a, t) : token_loss::PpoPolicyTerm{};
    out(a.dLogProb, t) = term.slope.logProb;
    if (a.dEntropy) out(a.dEntropy, t) = term.slope.entropy;
    if (!counts) return;
    sums[PpoPolicyLoss::kLoss] += term.loss;
    sums[PpoPolicyLoss::kApproxKl] += 0.5 * term.change * term.change;
    sums[PpoPolicyLoss::kClipped] += term.clipped;
    sums[PpoPolicyLoss::kRatio] += term.ratio;
    sums[PpoPolicyLoss::kRatioSquared] += term.ratio * term.ratio;
    if (a.entropy) sums[PpoPolicyLoss::kEntropy] += at(a.entropy, t);
    sums[PpoPolicyLoss::kTokens] += 1;
    sums[PpoPolicyLoss::kDualClipped] += term.dualClipped;
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
    const token_loss::PpoValueTerm term = token_loss::termOf(a, t);
    out(a.dValue, i) = term.slope;
    token_loss::addSums(term, sums);
  }
};

struct NllToken {
  TokenNllLoss a;

  RLHF_DEVICE void operator()(int64_t t, double (&sums)[TokenNllLoss::kStatCount]) const {
    const double weight = at(a.weight, t);
    out(a.dLogProb, t) = token_loss::slopeOf(a, t).logProb;
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
