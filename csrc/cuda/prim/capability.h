#pragma once
// What the current device is, as far as it decides which kernels run.

#include <climits>
#include <cstdlib>

#include "cuda/prim/launch.cuh"

namespace rlhf::cuda {

#if defined(__CUDACC__)
inline int deviceAttribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  checkCuda(cudaGetDevice(&device), "asking for the current device");
  checkCuda(cudaDeviceGetAttribute(&value, attribute, device), "asking for an attribute of the device");
  return value;
}

inline int deviceCapability() {
  return 10 * deviceAttribute(cudaDevAttrComputeCapabilityMajor) + deviceAttribute(cudaDevAttrComputeCapabilityMinor);
}

inline int multiprocessors() { return deviceAttribute(cudaDevAttrMultiProcessorCount); }
#else
inline int deviceCapability() { return simt::computeCapability(); }
inline int multiprocessors() { return simt::kMultiprocessors; }
#endif

/// What RLHF_CUDA_CAPABILITY allows at most (80: the kernels that run everywhere).
inline int allowedCapability() {
  const char* most = std::getenv("RLHF_CUDA_CAPABILITY");
  return most && *most ? std::atoi(most) : INT_MAX;
}

/// 10 × major + minor of the kernels to use: the device's, or less where that is all that is allowed.
inline int chosenCapability() {
#if defined(__CUDACC__)
  static const int allowed = allowedCapability();  // once: JavaScript may write the environment while a launch would read it
#else
  const int allowed = allowedCapability();
#endif
  const int capability = deviceCapability();
  return allowed < capability ? allowed : capability;
}

}  // namespace rlhf::cuda
