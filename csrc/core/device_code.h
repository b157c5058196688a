#pragma once

// Functions that host code and CUDA kernels share.
#if defined(__CUDACC__)
#define RLHF_HOST_DEVICE __host__ __device__ inline
#else
#define RLHF_HOST_DEVICE inline
#endif
