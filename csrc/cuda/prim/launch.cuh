#pragma once
// Kernel launches for both compilers. The only file with CUDA's launch syntax.

#include <type_traits>

#include "core/error.h"
#include "cuda/prim/platform.cuh"
#include "ops/context.h"

// Queues kernel<<<grid, block, sharedBytes, stream>>>(arguments…). A kernel with template arguments goes in parentheses.
#define RLHF_LAUNCH(kernel, grid, block, sharedBytes, stream, ...) \
  ::rlhf::cuda::launchKernel(#kernel, kernel, grid, block, sharedBytes, stream, __VA_ARGS__)

namespace rlhf::cuda {

/// Shared memory that a block may have on every device from sm_80 on.
inline constexpr size_t kSharedBytesEverywhere = 99 << 10;

#if defined(__CUDACC__)

/// Throws Error with CUDA's own text unless `status` is success.
inline void checkCuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const bool isMemory = status == cudaErrorMemoryAllocation;
  throw Error(isMemory ? code::kOutOfMemory : code::kInternal, format("%s: %s", what, cudaGetErrorString(status)));
}

template <class... Parameters>
void launchKernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t sharedBytes,
                  Stream* stream, std::type_identity_t<Parameters>... arguments) {
  constexpr size_t kSharedBytesWithoutAsking = 48 << 10;
  if (sharedBytes > kSharedBytesWithoutAsking) {
    checkCuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(sharedBytes)),
              name);
  }
  kernel<<<grid, block, sharedBytes, reinterpret_cast<cudaStream_t>(stream)>>>(arguments...);
  checkCuda(cudaGetLastError(), name);
}

#else

template <class... Parameters>
void launchKernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t sharedBytes, Stream*,
                  std::type_identity_t<Parameters>... arguments) {
  simt::launch(name, grid, block, sharedBytes, [&] { kernel(arguments...); });
}

#endif

}  // namespace rlhf::cuda
