#pragma once
#include "ops/ops.h"

namespace rlhf::cuda {

/// dq, dk and dv, where delta is computed; returns as launchHopperAttention does.
bool launchHopperAttentionGradients(OpContext& context, const AttentionBackward& arguments);

}  // namespace rlhf::cuda
