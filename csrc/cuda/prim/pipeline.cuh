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

/// A loop over `count` tiles of two arrays, of which one is read by the first part of a turn only: it has one buffer, the other two. While
/// one tile is consumed, the next are on their way. keep(tile, stage) starts the copies of the array that both parts read, use(tile) those
/// of the other; first(tile, stage) reads both, second(tile, stage) what is kept. All buffers are free when it returns.
template <class Keep, class Use, class First, class Second>
RLHF_DEVICE void pipelinedPairs(int count, Keep&& keep, Use&& use, First&& first, Second&& second) {
  if (count > 0) keep(0, 0), use(0);
  cpAsyncCommit();
  for (int tile = 0; tile < count; ++tile) {
    cpAsyncWait<0>();
    syncThreads();  // publishes this tile, and tells that all have consumed the one whose buffer is filled next
    if (tile + 1 < count) keep(tile + 1, (tile + 1) % 2);
    first(tile, tile % 2);
    syncThreads();
    if (tile + 1 < count) use(tile + 1);
    cpAsyncCommit();
    second(tile, tile % 2);
  }
  syncThreads();
}

}  // namespace rlhf::cuda
