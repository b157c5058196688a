#pragma once
#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// A loop over `count` tiles with kStages buffers, where a tile is gone through in kSteps steps: while one tile is, the next kStages − 1 are
/// on their way from global memory. load(tile, stage) starts copies into a buffer; read(tile, stage, step, part) reads a step's share from
/// it into one of kParts parts, and compute(tile, step, part) uses it. With two parts a step's share is read while the step before it is
/// computed, over the end of a tile too. All buffers are free when it returns.
template <int kStages, int kSteps, int kParts, class Load, class Read, class Compute>
RLHF_DEVICE void pipelinedLoop(int count, Load&& load, Read&& read, Compute&& compute) {
  static_assert(kParts == 1 || (kParts == 2 && kSteps % 2 == 0), "a tile's first step has part 0");
  if (count == 0) return;
#pragma unroll 1
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < count) load(tile, tile);
    cpAsyncCommit();
  }
  // Publishes a tile to all threads, and tells that all have read the tile before it, whose buffer is filled next. One group is committed
  // per tile, empty ones at the end included, so all but the newest kStages − 2 covers it.
  const auto await = [](Site site = Site::here()) {
    cpAsyncWait<kStages - 2>();
    syncThreads(site);
  };
  await();
  if constexpr (kParts == 2) read(0, 0, 0, 0);
  int stage = 0, filled = kStages - 1;
#pragma unroll 1
  for (int tile = 0; tile < count; ++tile) {
    if (tile + kStages - 1 < count) load(tile + kStages - 1, filled);
    cpAsyncCommit();
    const int next = stage + 1 < kStages ? stage + 1 : 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if constexpr (kParts == 1) read(tile, stage, step, 0);
      if (kParts == 2 && step + 1 < kSteps) read(tile, stage, step + 1, (step + 1) % 2);
      if (step + 1 == kSteps && tile + 1 < count) {
        await();
        if constexpr (kParts == 2) read(tile + 1, next, 0, 0);
      }
      compute(tile, step, step % kParts);
    }
    filled = stage;
    stage = next;
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
