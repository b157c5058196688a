#pragma once
#include "cuda/prim/warp.cuh"

namespace rlhf::cuda {

inline constexpr int kMaxWarps = 32;

/// What a sum over a block needs of shared memory.
struct BlockSumScratch {
  float warpSum[kMaxWarps];
};

/// Sum over all threads of a one-dimensional block of whole warps, in a fixed order; every thread gets the same bits.
RLHF_DEVICE float blockSum(float value, BlockSumScratch& scratch, Site site = Site::here()) {
  value = groupSum(value, site);
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return value;
  if (threadIdx.x % 32 == 0) scratch.warpSum[threadIdx.x / 32] = value;
  syncThreads();
  float sum = 0;
  for (int warp = 0; warp < warps; ++warp) sum += scratch.warpSum[warp];
  syncThreads();  // the next call overwrites what slower threads still read
  return sum;
}

}  // namespace rlhf::cuda
