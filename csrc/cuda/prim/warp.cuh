#pragma once
#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// Sum over aligned groups of kLanes neighbouring lanes, in the order of a butterfly: every lane gets the same bits.
template <int kLanes = 32, class T>
RLHF_DEVICE T groupSum(T value, Site site = Site::here()) {
#pragma unroll
  for (int laneMask = kLanes / 2; laneMask > 0; laneMask /= 2) value += shuffleXor(value, laneMask, site);
  return value;
}

template <int kLanes = 32>
RLHF_DEVICE float groupMax(float value, Site site = Site::here()) {
#pragma unroll
  for (int laneMask = kLanes / 2; laneMask > 0; laneMask /= 2) value = fmaxf(value, shuffleXor(value, laneMask, site));
  return value;
}

}  // namespace rlhf::cuda
