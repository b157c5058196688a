#pragma once
#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// A loop over `count` tiles with kStages buffers: while tile i is consumed, the next kStages − 1 are on their way from
/// global memory. load(tile, stage) starts copies into a buffer, consume(tile, stage) reads it. All buffers are free when
/// it returns.
template <int kStages, class Load, class Consume>
RLHF_DEVICE void pipelinedLoop(int count, Load&& load, Consume&& consume) {
#pragma unroll
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < count) load(tile, tile);
    cpAsyncCommit();
  }
  for (int tile = 0; tile < count; ++tile) {
    // One group is committed per tile, empty ones at the end included, so all but the newest kStages − 2 covers this tile.
    cpAsyncWait<kStages - 2>();
    // Publishes this tile to all threads, and tells that all have consumed the tile whose buffer is filled next.
    syncThreads();
    const int next = tile + kStages - 1;
    if (next < count) load(next, next % kStages);
    cpAsyncCommit();
    consume(tile, tile % kStages);
  }
  syncThreads();  // no copy is on its way: the groups behind the last tile's are empty
}

}  // namespace rlhf::cuda
