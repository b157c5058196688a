#pragma once
// What the current device is, as far as it decides which kernels run.

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

/// 10 × major + minor of the kernels to use: the device's, or less where RLHF_CUDA_CAPABILITY says so (80: those that run everywhere).
inline int chosenCapability() {
  const char* most = std::getenv("RLHF_CUDA_CAPABILITY");
  const int capability = deviceCapability(), limit = most && *most ? std::atoi(most) : capability;
  return limit < capability ? limit : capability;
}

}  // namespace rlhf::cuda
