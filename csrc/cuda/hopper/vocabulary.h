#pragma once
#include "cuda/hopper/matmul.h"
#include "cuda/hopper/sums.cuh"
#include "cuda/kl_divergence.cuh"
#include "cuda/token_log_prob.cuh"

// The head's products on Hopper's own instructions, as those of hopper/matmul.h. The vocabulary may be of any number of tokens; tiles are
// as wide for one row as for many, since what is left of a row for each of them is joined in their order.

namespace rlhf::cuda {

using HopperHeadSums = HopperSums<256>;

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StatisticsEpilogue<HopperHeadSums>& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LogitGradientEpilogue<bf16>& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LogitsEpilogue& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const DivergenceEpilogue<HopperHeadSums>& epilogue);
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const KlGradientEpilogue<bf16>& epilogue);

}  // namespace rlhf::cuda
