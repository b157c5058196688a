// Rewards, advantages and their whitening: what stands between a rollout and the losses. Arithmetic in double, as on the CPU.

#include "cuda/kernels.h"
#include "cuda/sequences.cuh"
#include "cuda/sums.cuh"

namespace rlhf::cuda {
namespace {

// All arrays here have the accumulator's type.
RLHF_DEVICE double at(const void* array, int64_t index) { return static_cast<const float*>(array)[index]; }
RLHF_DEVICE float& out(void* array, int64_t index) { return static_cast<float*>(array)[index]; }

/// Adds up the elements that count, and how many they are.
struct SelectedSum {
  const void* mask;
  const void* x;

  RLHF_DEVICE void operator()(int64_t i, double (&sums)[2]) const {
    if (at(mask, i) == 0) return;
    sums[0] += at(x, i);
    sums[1] += 1;
  }
};

RLHF_DEVICE double meanOf(const double (&sums)[2]) { return sums[1] > 0 ? sums[0] / sums[1] : 0; }

union WhitenShared {
  SumsShared<2> sums;
  SumsShared<1> squares;
};

/// Where the blocks of both passes leave their sums.
struct WhitenPartials {
  double* sums;     // [blocks, 2]
  double* squares;  // [blocks]
  int blocks;
};

__global__ void __launch_bounds__(kSumThreads)
    squaredDistancesKernel(const __grid_constant__ Whiten a, const __grid_constant__ WhitenPartials partials) {
  RLHF_SHARED_MEMORY(WhitenShared, shared);
  double sums[2], squares[1] = {0};
  addUpPartials(sums, partials.sums, partials.blocks, shared.sums);
  const double mean = meanOf(sums);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; i < a.count;
       i += static_cast<int64_t>(gridDim.x) * kSumThreads)
    if (at(a.mask, i) != 0) squares[0] += (at(a.x, i) - mean) * (at(a.x, i) - mean);
  leavePartials(squares, partials.squares, shared.squares);
}

__global__ void __launch_bounds__(kSumThreads)
    whitenKernel(const __grid_constant__ Whiten a, const __grid_constant__ WhitenPartials partials) {
  RLHF_SHARED_MEMORY(WhitenShared, shared);
  double sums[2], squares[1];
  addUpPartials(sums, partials.sums, partials.blocks, shared.sums);
  addUpPartials(squares, partials.squares, partials.blocks, shared.squares);
  const double mean = meanOf(sums), variance = sums[1] > 1 ? squares[0] / (sums[1] - 1) : 0;
  const double rstd = 1 / sqrt(variance + a.eps), shift = a.shiftMean ? 0 : mean;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; i < a.count;
       i += static_cast<int64_t>(gridDim.x) * kSumThreads)
    out(a.y, i) = at(a.mask, i) != 0 ? static_cast<float>((at(a.x, i) - mean) * rstd + shift) : 0.0f;
}

/// KL(policy ‖ reference) at one token from d = refLogProb − logProb.
RLHF_DEVICE double klEstimate(KlEstimator estimator, double d) {
  switch (estimator) {
    case KlEstimator::K1: return -d;
    case KlEstimator::K2: return 0.5 * d * d;
    case KlEstimator::K3: return expm1(d) - d;
  }
  return 0;
}

/// Goes through a sequence from its end, where its last counted token is.
struct KlRewardSequence {
  KlReward a;

  RLHF_DEVICE void operator()(int64_t s, int lane) const {
    const int64_t begin = a.offsets[s];
    bool isScored = false;
    for (int64_t end = a.offsets[s + 1]; end > begin; end -= 32) {
      const int64_t t = end - 32 + lane;
      const bool counts = t >= begin && at(a.mask, t) != 0;
      const uint32_t counted = ballot(counts);
      if (t >= begin) {
        const double kl = counts ? klEstimate(a.estimator, at(a.refLogProb, t) - at(a.logProb, t)) : 0;
        const bool takesScore = !isScored && counts && lane == highestBit(counted);
        const double reward = -a.klCoefficient * kl + (takesScore ? at(a.score, s) : 0);
        out(a.kl, t) = static_cast<float>(kl);
        out(a.reward, t) = counts ? static_cast<float>(reward) : 0.0f;
      }
      isScored |= counted != 0;
    }
  }
};

/// A = offset + factor·A', of a run of tokens and the advantage behind it. Runs put together are such a map again.
struct AffineMap {
  double factor, offset;

  RLHF_DEVICE AffineMap after(const AffineMap& later) const { return {factor * later.factor, offset + factor * later.offset}; }
};

/// Each lane's map put together with those of all lanes above it.
RLHF_DEVICE AffineMap scanFromAbove(AffineMap map, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int source = lane + distance < 32 ? lane + distance : lane;
    const double factor = shuffle(map.factor, source), offset = shuffle(map.offset, source);
    if (source != lane) map = map.after({factor, offset});
  }
  return map;
}

/// A reverse scan, 32 tokens at a time from the end of the sequence. Tokens that do not count leave the advantage as it is.
struct GaeSequence {
  Gae a;

  RLHF_DEVICE void operator()(int64_t s, int lane) const {
    const int64_t begin = a.offsets[s];
    double nextAdvantage = 0, nextValue = 0;
    for (int64_t end = a.offsets[s + 1]; end > begin; end -= 32) {
      const int64_t t = end - 32 + lane;
      const bool counts = t >= begin && at(a.mask, t) != 0;
      double value = 0;
      if (counts) value = t > begin ? at(a.value, t - 1) : NAN;  // nothing predicts a sequence's first token
      const uint32_t counted = ballot(counts), above = static_cast<uint32_t>(static_cast<uint64_t>(counted) >> (lane + 1));
      const double valueAbove = shuffle(value, above ? lane + 1 + lowestBit(above) : lane);
      AffineMap map{1, 0};
      if (counts) map = {a.gamma * a.lambda, at(a.reward, t) + a.gamma * (above ? valueAbove : nextValue) - value};
      map = scanFromAbove(map, lane);
      const double advantage = map.offset + map.factor * nextAdvantage;
      if (t >= begin) {
        out(a.advantage, t) = counts ? static_cast<float>(advantage) : 0.0f;
        out(a.returns, t) = counts ? static_cast<float>(advantage + value) : 0.0f;
      }
      nextAdvantage = shuffle(advantage, 0);
      if (counted) nextValue = shuffle(value, lowestBit(counted));
    }
  }
};

}  // namespace

void whiten(OpContext& context, const Whiten& a) {
  requireFloatSums(a.type, "whiten");
  if (a.count == 0) return;
  requireScratch(context, sumsScratchBytes(), "whiten");
  const int blocks = sumBlocksFor(a.count);
  auto* const scratch = static_cast<double*>(context.scratch);
  const WhitenPartials partials{scratch, scratch + 2 * blocks, blocks};
  const dim3 grid(static_cast<uint32_t>(blocks)), block(kSumThreads);
  RLHF_LAUNCH((sumEachKernel<2, SelectedSum>), grid, block, sizeof(SumsShared<2>), context.stream, SelectedSum{a.mask, a.x}, a.count,
              partials.sums);
  RLHF_LAUNCH(squaredDistancesKernel, grid, block, sizeof(WhitenShared), context.stream, a, partials);
  RLHF_LAUNCH(whitenKernel, grid, block, sizeof(WhitenShared), context.stream, a, partials);
}

void klReward(OpContext& context, const KlReward& a) {
  requireFloatSums(a.type, "klReward");
  launchSequences(context, a.sequences, KlRewardSequence{a});
}

void gae(OpContext& context, const Gae& a) {
  requireFloatSums(a.type, "gae");
  launchSequences(context, a.sequences, GaeSequence{a});
}

}  // namespace rlhf::cuda
