#pragma once
#include "ops/token_loss_math.h"

// The arithmetic of losses whose gradient at a token depends on that token alone (or on its answer's ratio). It is compiled once, so
// that a loss has the same bits in an op of its own and inside the vocabulary's pass.

namespace rlhf::RLHF_ISA {

using token_loss::GroupPolicyTerm;
using token_loss::PpoPolicyTerm;
using token_loss::SharedRatio;
using token_loss::TokenSlope;

TokenSlope slopeOf(const TokenNllLoss& a, int64_t t);

/// Of a token in the mask.
PpoPolicyTerm termOf(const PpoPolicyLoss& a, int64_t t);

SharedRatio sharedRatio(const GroupPolicyLoss& a, int64_t sequence);

/// Of a token in the mask.
GroupPolicyTerm termOf(const GroupPolicyLoss& a, const SharedRatio& shared, int64_t sequence, int64_t t);

}  // namespace rlhf::RLHF_ISA
