#pragma once
#include <algorithm>

#include "cuda/launch_checks.h"
#include "cuda/prim/block.cuh"
#include "cuda/prim/launch.cuh"

// Sums of a few numbers over many elements, in double and without atomics: blocks leave theirs in scratch memory, a last block adds
// those up. The split depends on the number of elements alone, so equal inputs give equal bits on every GPU.

namespace rlhf::cuda {

inline constexpr int kSumThreads = 256;
inline constexpr int64_t kMaxSumBlocks = 1024;
inline constexpr int64_t kElementsPerSumBlock = 4 * kSumThreads;
inline constexpr int kMaxSums = 16;

inline size_t sumsScratchBytes() { return static_cast<size_t>(kMaxSumBlocks) * kMaxSums * sizeof(double); }

inline int sumBlocksFor(int64_t count) {
  return static_cast<int>(std::clamp<int64_t>((count + kElementsPerSumBlock - 1) / kElementsPerSumBlock, 1, kMaxSumBlocks));
}

template <int kSums>
using SumsShared = BlockSumsScratch<double, kSums>;

/// partials[block, i] = the block's sums[i], which all its threads hold a part of.
template <int kSums>
RLHF_DEVICE void leavePartials(double (&sums)[kSums], double* partials, SumsShared<kSums>& shared, Site site = Site::here()) {
  blockSums(sums, shared, site);
  if (threadIdx.x > 0) return;
#pragma unroll
  for (int i = 0; i < kSums; ++i) partials[blockIdx.x * kSums + i] = sums[i];
}

/// The sums of all blocks, in every thread.
template <int kSums>
RLHF_DEVICE void addUpPartials(double (&sums)[kSums], const double* partials, int blocks, SumsShared<kSums>& shared,
                               Site site = Site::here()) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = 0;
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += static_cast<int>(blockDim.x)) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += partials[block * kSums + i];
  }
  blockSums(sums, shared, site);
}

/// each(element, sums) adds what an element contributes, and may write the element's outputs.
template <int kSums, class Each>
__global__ void __launch_bounds__(kSumThreads) sumEachKernel(const __grid_constant__ Each each, int64_t count, double* partials) {
  RLHF_SHARED_MEMORY(SumsShared<kSums>, shared);
  double sums[kSums] = {};
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kSumThreads)
    each(i, sums);
  leavePartials(sums, partials, shared);
}

template <int kSums, class Out>
__global__ void __launch_bounds__(kSumThreads) addSumsKernel(const double* partials, int blocks, Out* out) {
  RLHF_SHARED_MEMORY(SumsShared<kSums>, shared);
  double sums[kSums];
  addUpPartials(sums, partials, blocks, shared);
  if (threadIdx.x > 0) return;
#pragma unroll
  for (int i = 0; i < kSums; ++i) out[i] = static_cast<Out>(sums[i]);
}

/// out[i] = Σ of what blocks left in scratch memory.
template <int kSums, class Out>
void launchAddSums(OpContext& context, int blocks, Out* out) {
  RLHF_LAUNCH((addSumsKernel<kSums, Out>), dim3(1), dim3(kSumThreads), sizeof(SumsShared<kSums>), context.stream,
              static_cast<const double*>(context.scratch), blocks, out);
}

/// Runs each(element, sums) for all elements and leaves the kSums sums in `out`.
template <int kSums, class Each, class Out>
void launchSumEach(OpContext& context, const char* op, int64_t count, const Each& each, Out* out) {
  static_assert(kSums <= kMaxSums);
  requireScratch(context, sumsScratchBytes(), op);
  const int blocks = sumBlocksFor(count);
  RLHF_LAUNCH((sumEachKernel<kSums, Each>), dim3(static_cast<uint32_t>(blocks)), dim3(kSumThreads), sizeof(SumsShared<kSums>),
              context.stream, each, count, static_cast<double*>(context.scratch));
  launchAddSums<kSums>(context, blocks, out);
}

}  // namespace rlhf::cuda
