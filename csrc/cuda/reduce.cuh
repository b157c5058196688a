#pragma once
#include "cuda/prim/launch.cuh"

// Sums over rows in two steps without atomics: blocks leave partial sums in scratch memory, addPartials adds them up in the
// order of their index. The split depends on the sizes alone, so equal inputs give equal bits on every GPU.

namespace rlhf::cuda {

inline constexpr int kReduceThreads = 256;

/// out[c] += Σ_p partials[p, c], p rising.
static __global__ void __launch_bounds__(kReduceThreads)
    addPartialsKernel(float* out, const float* partials, int count, int64_t cols) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (col >= cols) return;
  float sum = 0;
  for (int p = 0; p < count; ++p) sum += partials[p * cols + col];
  out[col] += sum;
}

inline void launchAddPartials(OpContext& context, float* out, const float* partials, int count, int64_t cols) {
  const dim3 grid(static_cast<uint32_t>((cols + kReduceThreads - 1) / kReduceThreads));
  RLHF_LAUNCH(addPartialsKernel, grid, dim3(kReduceThreads), 0, context.stream, out, partials, count, cols);
}

}  // namespace rlhf::cuda
