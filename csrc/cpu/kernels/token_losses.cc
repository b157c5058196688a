#include "cpu/kernels/token_losses.h"

namespace rlhf::RLHF_ISA {

token_loss::TokenSlope slopeOf(const TokenNllLoss& a, int64_t t) { return token_loss::slopeOf(a, t); }
token_loss::PpoPolicyTerm termOf(const PpoPolicyLoss& a, int64_t t) { return token_loss::termOf(a, t); }
token_loss::GroupPolicyTerm termOf(const GroupPolicyLoss& a, const token_loss::SharedRatio& shared, int64_t sequence, int64_t t) {
  return token_loss::termOf(a, shared, sequence, t);
}

}  // namespace rlhf::RLHF_ISA
