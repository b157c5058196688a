// The policy losses of groups, in double as on the CPU. A block goes through a sequence twice: for what its tokens share, then token
// by token.

#include "cuda/kernels.h"
#include "cuda/sums.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kStats = GroupPolicyLoss::kStatCount;

RLHF_DEVICE double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }

/// What the tokens of a sequence with one ratio share: its logarithm, the mean or sum of KLs that a weighed KL's slope takes from all
/// of them, and how many of them the slope of a sum is multiplied by.
struct Shared {
  double logRatio, kl, tokens;
};

struct Surrogate {
  double loss, slope;
  bool low, high;
};

struct GroupPolicy {
  GroupPolicyLoss a;

  RLHF_DEVICE double logRatio(int64_t t) const { return at(a.logProb, t) - at(a.oldLogProb, t); }

  /// log(reference ÷ policy); 0 without a reference.
  RLHF_DEVICE double fromReference(int64_t t) const { return a.refLogProb ? at(a.refLogProb, t) - at(a.logProb, t) : 0; }

  RLHF_DEVICE Shared sharedOf(int64_t begin, int64_t end, SumsShared<3>& scratch) const {
    if (a.level == RatioLevel::Token) return {0, 0, 1};
    double sums[3] = {0, 0, 0};
    for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) {
      if (at(a.mask, t) == 0) continue;
      const double d = fromReference(t);
      sums[0] += logRatio(t), sums[1] += expm1(d) - d, sums[2] += 1;
    }
    blockSums(sums, scratch);
    if (a.level == RatioLevel::SequenceSum || sums[2] == 0) return {sums[0], sums[1], sums[2]};
    return {sums[0] / sums[2], sums[1] / sums[2], 1};
  }

  RLHF_DEVICE Surrogate surrogate(double advantage, double ratio, double logProb, double tokens) const {
    if (a.surrogate == PolicySurrogate::Truncated) {
      const bool isHigh = ratio > a.highestRatio;
      const double slope = -(isHigh ? a.highestRatio : ratio) * advantage;
      return {slope * logProb, slope, false, isHigh};
    }
    const bool isLow = ratio < a.lowestRatio, isHigh = ratio > a.highestRatio;
    const double plain = -advantage * ratio, clipped = -advantage * (isLow ? a.lowestRatio : isHigh ? a.highestRatio : ratio);
    if (clipped > plain) return {clipped, 0, isLow, !isLow};
    return {plain, plain * tokens, false, false};
  }

  RLHF_DEVICE void token(int64_t t, double weight, double advantage, const Shared& shared, double (&sums)[kStats]) const {
    const double change = logRatio(t), ratio = exp(a.level == RatioLevel::Token ? change : shared.logRatio);
    const Surrogate each = surrogate(advantage, ratio, at(a.logProb, t), shared.tokens);
    const double d = fromReference(t), growth = expm1(d), kl = growth - d;
    const double klWeight = a.weighKl ? ratio : 1;
    const double throughRatio = !a.weighKl ? 0 : a.level == RatioLevel::Token ? kl : shared.kl;
    const double slope = each.slope + a.klCoefficient * klWeight * (throughRatio - growth);
    static_cast<float*>(a.dLogProb)[t] = static_cast<float>(weight * slope);
    sums[GroupPolicyLoss::kLoss] += weight * (each.loss + a.klCoefficient * klWeight * kl);
    sums[GroupPolicyLoss::kApproxKl] += 0.5 * change * change;
    sums[GroupPolicyLoss::kClippedLow] += each.low;
    sums[GroupPolicyLoss::kClippedHigh] += each.high;
    sums[GroupPolicyLoss::kRatio] += ratio;
    sums[GroupPolicyLoss::kRatioSquared] += ratio * ratio;
    sums[GroupPolicyLoss::kKl] += kl;
    sums[GroupPolicyLoss::kTokens] += 1;
  }
};

union GroupPolicyShared {
  SumsShared<3> sequence;
  SumsShared<kStats> stats;
};

__global__ void __launch_bounds__(kThreads) groupPolicyKernel(const __grid_constant__ GroupPolicy loss, double* partials) {
  RLHF_SHARED_MEMORY(GroupPolicyShared, shared);
  const GroupPolicyLoss& a = loss.a;
  double sums[kStats] = {};
  for (int64_t s = blockIdx.x; s < a.sequences; s += gridDim.x) {
    const int64_t begin = a.offsets[s], end = a.offsets[s + 1];
    const Shared ofSequence = loss.sharedOf(begin, end, shared.sequence);
    for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) {
      if (at(a.mask, t) == 0) {
        static_cast<float*>(a.dLogProb)[t] = 0;
      } else {
        loss.token(t, at(a.weight, s), a.tokenAdvantage ? at(a.tokenAdvantage, t) : at(a.advantage, s), ofSequence, sums);
      }
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
              GroupPolicy{a}, static_cast<double*>(context.scratch));
  launchAddSums<kStats>(context, blocks, static_cast<float*>(a.stats));
}

}  // namespace rlhf::cuda
