#pragma once
#include "cuda/prim/platform.cuh"

namespace rlhf::cuda {

/// Where the ring stands: which stage is next, and for which time it is gone through.
template <int kStages>
struct RingPosition {
  int stage = 0, parity = 0;

  RLHF_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace rlhf::cuda
