#pragma once
#include "cuda/prim/launch.cuh"
#include "cuda/prim/warp.cuh"

// Work that goes sequence by sequence, a warp for each.

namespace rlhf::cuda {

inline constexpr int kSequenceWarps = 4;  // of a block

template <class Each>
__global__ void __launch_bounds__(32 * kSequenceWarps) sequencesKernel(const __grid_constant__ Each each, int64_t sequences) {
  const int64_t sequence = static_cast<int64_t>(blockIdx.x) * kSequenceWarps + threadIdx.x / 32;
  if (sequence < sequences) each(sequence, static_cast<int>(threadIdx.x) % 32);
}

/// Runs each(sequence, lane) by a warp per sequence.
template <class Each>
void launchSequences(OpContext& context, int64_t sequences, const Each& each) {
  const dim3 grid(static_cast<uint32_t>((sequences + kSequenceWarps - 1) / kSequenceWarps));
  RLHF_LAUNCH(sequencesKernel<Each>, grid, dim3(32 * kSequenceWarps), 0, context.stream, each, sequences);
}

}  // namespace rlhf::cuda
