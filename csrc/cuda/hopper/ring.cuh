#pragma once
#include "cuda/prim/ptx.cuh"

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

/// What tells of a ring's slots whether they are filled and whether they are free.
template <int kStages>
struct RingBarriers {
  TransactionBarrier filled[kStages];  // by the producer's arrival and the bytes that it expects
  TransactionBarrier free[kStages];    // by an arrival of each warp that reads

  /// By one thread, which then calls publishBarriers.
  RLHF_DEVICE void init(int readers) {
    for (int stage = 0; stage < kStages; ++stage) {
      initBarrier(&filled[stage], 1);
      initBarrier(&free[stage], readers);
    }
  }
};

/// The side of a ring that fills its slots.
template <int kStages>
struct RingWriter {
  RingBarriers<kStages>& barriers;
  RingPosition<kStages> at{};

  /// Waits until the next slot is free, for the first time at once, and goes on behind it.
  RLHF_DEVICE int take() {
    const int slot = at.stage;
    waitFor(&barriers.free[slot], at.parity ^ 1);
    at.advance();
    return slot;
  }
};

/// The side of a ring that reads its slots.
template <int kStages>
struct RingReader {
  RingBarriers<kStages>& barriers;
  RingPosition<kStages> at{};

  /// Waits until the next slot is filled, and goes on behind it.
  RLHF_DEVICE int take() {
    const int slot = at.stage;
    waitFor(&barriers.filled[slot], at.parity);
    at.advance();
    return slot;
  }
  RLHF_DEVICE void release(int slot) {
    syncWarp();  // a lane that had yet to see the slot filled would see it filled again, or never
    if (threadIdx.x % 32 == 0) arrive(&barriers.free[slot]);
  }
};

}  // namespace rlhf::cuda
