#pragma once
#include "ops/ops.h"

namespace rlhf::cuda {

/// Attention in bfloat16 on Hopper's own instructions. Queues it and returns true, or returns false and does nothing where the device has
/// none (chosenCapability), or heads or arrays are not as TMA and the tiles take them. What decides is independent of the rows and the
/// sequences, so that a row has the same bits among any others.
bool launchHopperAttention(OpContext& context, const AttentionForward& arguments);

}  // namespace rlhf::cuda
