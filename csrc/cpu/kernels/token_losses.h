#pragma once
#include "ops/token_loss_math.h"

// The losses of single tokens (ops/token_loss_math.h), compiled once: a loss has the same bits in an op of its own and inside the
// vocabulary's pass.

namespace rlhf::RLHF_ISA {

token_loss::TokenSlope slopeOf(const TokenNllLoss& a, int64_t t);
token_loss::PpoPolicyTerm termOf(const PpoPolicyLoss& a, int64_t t);
token_loss::GroupPolicyTerm termOf(const GroupPolicyLoss& a, const token_loss::SharedRatio& shared, int64_t sequence, int64_t t);

}  // namespace rlhf::RLHF_ISA
