// The policy losses of groups, in double as on the CPU. A block goes through a sequence twice: for what its tokens share, then token
// by token.

#include "cuda/kernels.h"
#include "cuda/sums.cuh"
#include "ops/token_loss_math.h"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kStats = GroupPolicyLoss::kStatCount;

using token_loss::at;

/// What the tokens of a sequence with one ratio share.
RLHF_DEVICE token_loss::SharedRatio sharedRatio(const GroupPolicyLoss& a, int64_t begin, int64_t end, SumsShared<3>& scratch) {
  token_loss::SharedRatio shared;
  if (a.level == RatioLevel::Token) return shared;
  for (int64_t t = begin + threadIdx.x; t < end; t += kThreads)
    if (at(a.mask, t) != 0) token_loss::addToken(shared, a, t);
  double sums[3] = {shared.logRatio, shared.kl, shared.tokens};
  blockSums(sums, scratch);
  return token_loss::sharedOf(a, {sums[0], sums[1], sums[2]});
}

union GroupPolicyShared {
  SumsShared<3> sequence;
  SumsShared<kStats> stats;
};

__global__ void __launch_bounds__(kThreads) groupPolicyKernel(const __grid_constant__ GroupPolicyLoss a, double* partials) {
  RLHF_SHARED_MEMORY(GroupPolicyShared, shared);
  double sums[kStats] = {};
  for (int64_t s = blockIdx.x; s < a.sequences; s += gridDim.x) {
    const int64_t begin = a.offsets[s], end = a.offsets[s + 1];
    const token_loss::SharedRatio ofSequence = sharedRatio(a, begin, end, shared.sequence);
    for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) {
      const bool counts = at(a.mask, t) != 0;
      const token_loss::GroupPolicyTerm term = counts ? token_loss::termOf(a, ofSequence, s, t) : token_loss::GroupPolicyTerm{};
      static_cast<float*>(a.dLogProb)[t] = term.slope.logProb;
      if (counts) token_loss::addSums(term, sums);
    }
  }
  leavePartials(sums, partials, shared.stats);
}

}  // namespace

void groupPolicyLoss(OpContext& context, const GroupPolicyLoss& a) {
  requireFloatSums(a.type, "groupPolicyLoss");
  requireScratch(context, sumsScratchBytes(), "groupPolicyLoss");
  const int blocks = static_cast<int>(std::min<int64_t>(a.sequences, kMaxSumBlocks));
  RLHF_LAUNCH(groupPolicyKernel, dim3(static_cast<uint32_t>(blocks)), dim3(kThreads), sizeof(GroupPolicyShared), context.stream,
              a, static_cast<double*>(context.scratch));
  launchAddSums<kStats>(context, blocks, static_cast<float*>(a.stats));
}

}  // namespace rlhf::cuda
