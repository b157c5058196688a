// Losses of tokens, by the formulas that the CPU has (ops/token_loss_math.h). A thread per token; statistics as in sums.cuh.

#include "cuda/kernels.h"
#include "cuda/sums.cuh"
#include "ops/token_loss_math.h"

namespace rlhf::cuda {
namespace {

RLHF_DEVICE float& out(void* array, int64_t index) { return static_cast<float*>(array)[index]; }

struct PolicyToken {
  PpoPolicyLoss a;

  RLHF_DEVICE void operator()(int64_t t, double (&sums)[PpoPolicyLoss::kStatCount]) const {
    const bool counts = token_loss::at(a.mask, t) != 0;
    const auto term = counts ? token_loss::ppoPolicyTerm(a, t) : token_loss::PpoPolicyTerm{};
    out(a.dLogProb, t) = term.slope.logProb;
    if (a.dEntropy) out(a.dEntropy, t) = term.slope.entropy;
    if (counts) token_loss::addSums(a, term, t, sums);
  }
};

/// Element i is the value at i: that of token i + 1. The first token of all has none, and makes the loss NaN where it is masked in.
struct ValueOfNextToken {
  PpoValueLoss a;

  RLHF_DEVICE void operator()(int64_t i, double (&sums)[PpoValueLoss::kStatCount]) const {
    if (i == 0 && token_loss::at(a.mask, 0) != 0) sums[PpoValueLoss::kLoss] = NAN;
    const int64_t t = i + 1;
    const bool counts = t < a.rows && token_loss::at(a.mask, t) != 0;
    out(a.dValue, i) = counts ? token_loss::addValueLoss(a, t, sums) : 0.0f;
  }
};

struct NllToken {
  TokenNllLoss a;

  RLHF_DEVICE void operator()(int64_t t, double (&sums)[TokenNllLoss::kStatCount]) const {
    out(a.dLogProb, t) = token_loss::nllSlope(a, t).logProb;
    token_loss::addSums(a, t, sums);
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
