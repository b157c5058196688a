#pragma once

// Functions that host code and CUDA kernels share. Those marked SHARED are called in kernels, not copied into them: where one has many
// branches, each with logarithms in double, copies would take all registers.
#if defined(__CUDACC__)
#define RLHF_HOST_DEVICE __host__ __device__ inline
#define RLHF_HOST_DEVICE_SHARED __host__ __device__ __noinline__
#else
#define RLHF_HOST_DEVICE inline
#define RLHF_HOST_DEVICE_SHARED inline
#endif
