#pragma once
#include "cuda/prim/warp.cuh"

namespace rlhf::cuda {

inline constexpr int kMaxWarps = 32;

/// What sums of kCount values each over a block need of shared memory.
template <class T, int kCount>
struct BlockSumsScratch {
  T warpSum[kMaxWarps][kCount];
};
using BlockSumScratch = BlockSumsScratch<float, 1>;

/// Sums over all threads of a one-dimensional block of whole warps, in a fixed order; every thread gets the same bits.
template <class T, int kCount>
RLHF_DEVICE void blockSums(T (&values)[kCount], BlockSumsScratch<T, kCount>& scratch, Site site = Site::here()) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = groupSum(values[i], site);
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return;
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) scratch.warpSum[threadIdx.x / 32][i] = values[i];
  }
  syncThreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0;
    for (int warp = 0; warp < warps; ++warp) values[i] += scratch.warpSum[warp][i];
  }
  syncThreads();  // the next call overwrites what slower threads still read
}

/// The sum of one value each.
template <class T>
RLHF_DEVICE T blockSum(T value, BlockSumsScratch<T, 1>& scratch, Site site = Site::here()) {
  T values[1] = {value};
  blockSums(values, scratch, site);
  return values[0];
}

}  // namespace rlhf::cuda
