#include "cpu/kernels/token_losses.h"

namespace rlhf::RLHF_ISA {

TokenSlope slopeOf(const TokenNllLoss& a, int64_t t) { return token_loss::nllSlope(a, t); }

PpoPolicyTerm termOf(const PpoPolicyLoss& a, int64_t t) { return token_loss::ppoPolicyTerm(a, t); }

SharedRatio sharedRatio(const GroupPolicyLoss& a, int64_t sequence) {
  if (a.level == RatioLevel::Token) return {};
  double sums[3] = {};
  for (int64_t t = a.offsets[sequence]; t < a.offsets[sequence + 1]; ++t)
    if (token_loss::at(a.mask, t) != 0) token_loss::addShared(a, t, sums);
  return token_loss::sharedRatioOf(a.level, sums);
}

GroupPolicyTerm termOf(const GroupPolicyLoss& a, const SharedRatio& shared, int64_t sequence, int64_t t) {
  return token_loss::groupPolicyTerm(a, shared, sequence, t);
}

}  // namespace rlhf::RLHF_ISA
