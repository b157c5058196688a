#pragma once
#include "ops/group_policy.h"
#include "ops/losses.h"

// The arithmetic of losses whose gradient at a token depends on that token alone (or on its answer's ratio). It is compiled once, so
// that a loss has the same bits in an op of its own and inside the vocabulary's pass. In double: a ratio exp(Δ log-prob) loses nothing.

namespace rlhf::RLHF_ISA {

/// What a loss gives for one token: the gradients of its log-prob and its entropy.
struct TokenSlope {
  float logProb = 0, entropy = 0;
};

TokenSlope slopeOf(const TokenNllLoss& a, int64_t t);

struct PpoPolicyTerm {
  TokenSlope slope;
  double loss = 0, change = 0, ratio = 0;
  bool clipped = false, dualClipped = false;
};

/// Of a token in the mask.
PpoPolicyTerm termOf(const PpoPolicyLoss& a, int64_t t);

/// What the tokens of a sequence share where they have one ratio: its logarithm, and what a weighed KL's slope takes from all of them.
struct SharedRatio {
  double logRatio = 0, kl = 0;
  int64_t tokens = 0;
};
SharedRatio sharedRatio(const GroupPolicyLoss& a, int64_t sequence);

struct GroupPolicyTerm {
  TokenSlope slope;
  double loss = 0, change = 0, ratio = 0, kl = 0;
  bool low = false, high = false;
};

/// Of a token in the mask.
GroupPolicyTerm termOf(const GroupPolicyLoss& a, const SharedRatio& shared, int64_t sequence, int64_t t);

}  // namespace rlhf::RLHF_ISA
