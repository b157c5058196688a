#pragma once
#include "cuda/linear_epilogue.cuh"

// Products of bfloat16 matrices on Hopper's own instructions. Each queues D and returns true, or returns false and does nothing where
// the device has none (chosenCapability), or the operands or the epilogue's arrays are not as TMA and packs of four take them. What
// decides is independent of the number of rows of y = x·Wᵀ, so that a row has the same bits among any others.

namespace rlhf::cuda {

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LinearEpilogue<bf16>& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<bf16>& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<float>& epilogue);

}  // namespace rlhf::cuda
