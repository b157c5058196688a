#pragma once
// attentionForwardKernel of cuda/attention.cu for Hopper: keys and values by TMA through a ring of slots, products by wgmma, the softmax in
// registers. One warp copies; each of the other warpgroups has 64 queries, and multiplies the next keys while it weighs the last
// (FlashAttention 3, Shah et al. 2024).

#include "cuda/attention_softmax.cuh"
#include "cuda/hopper/attention_tile.cuh"

namespace rlhf::cuda {

/// Narrow heads leave room for a third warpgroup.
template <int kDim>
using ForwardTile = HopperAttention<kDim, kDim == 64 ? 3 : 2, 128>;

template <class Attention>
struct HopperForwardShared {
  static constexpr int kStages = Attention::kDim == 64 ? 8 : 6;
  typename Attention::RowTile q;
  union {
    typename Attention::ColTile slot[kStages];  // keys and values, in the order in which they are used
    typename Attention::Staged sums[4 * Attention::kConsumers];
  };
  TransactionBarrier rowsFilled;
  RingBarriers<kStages> ring;
};

struct HopperForwardArrays {
  TensorMap q;
  KeyMaps k, v;
  bf16* o;
  int64_t oStride;
  float* lse;
};

/// The thread that copies. A tile's values come behind the next tile's keys.
template <class Attention>
RLHF_DEVICE void produceKeys(HopperForwardShared<Attention>& shared, const HopperForwardArrays& arrays, const QueryTile<Attention>& queries,
                             int head, int kvHead) {
  arriveExpecting(&shared.rowsFilled, sizeof shared.q);
  shared.q.copy(arrays.q, head, queries.sequence.begin + queries.firstRow, &shared.rowsFilled);
  RingWriter<HopperForwardShared<Attention>::kStages> ring{shared.ring};
  const auto copy = [&](const KeyMaps& maps, int tile) {
    const int slot = ring.take();
    arriveExpecting(&shared.ring.filled[slot], sizeof shared.slot[slot]);
    copyKeys(shared.slot[slot], maps, kvHead, queries.sequence, queries.firstKey(tile), &shared.ring.filled[slot]);
  };
  const int tiles = queries.keyTiles();
  copy(arrays.k, 0);
  for (int tile = 1; tile < tiles; ++tile) {
    copy(arrays.k, tile);
    copy(arrays.v, tile - 1);
  }
  copy(arrays.v, tiles - 1);
}

/// A warpgroup that has queries.
template <class Attention>
struct ForwardConsumer {
  HopperForwardShared<Attention>& shared;
  const QueryTile<Attention>& queries;
  const AttentionShape& shape;
  int group;  // of 64 queries
  RunningSoftmax<Attention> softmax{shape.scale * kLog2E};
  typename Attention::Sums output{};
  float shrinkBy[Attention::kRowSlots]{};
  typename Attention::Scores scores{};
  typename Attention::Weights weights{};
  RingReader<HopperForwardShared<Attention>::kStages> ring{shared.ring};

  RLHF_DEVICE void startScores(int slot) { Attention::startScores(scores, shared.q, group, shared.slot[slot]); }
  RLHF_DEVICE void startOutput(int slot) { Attention::startSums(output, weights, shared.slot[slot]); }
  RLHF_DEVICE void weigh(int tile) {
    queries.hide(scores, shape, tile);
    softmax.weigh(scores, [&](int row, float factor) { shrinkBy[row] = factor; });
  }

  /// Goes through the tiles that any of the warpgroup's queries sees, and past those that only others see.
  RLHF_DEVICE void run() {
    const int tiles = queries.keyTiles(), own = queries.keyTilesOf(Attention::kGroupRows * (group + 1));
    const int first = ring.take();
    startScores(first);
    waitForProducts<0>(scores.sum);
    ring.release(first);
    weigh(0);
    weights.pack(scores);
    int next = ring.take();
#pragma unroll 1
    for (int tile = 1; tile < own; ++tile) {
      const int keys = next;
      startScores(keys);
      const int values = ring.take();
      startOutput(values);
      waitForProducts<1>(scores.sum);
      ring.release(keys);
      weigh(tile);
      next = ring.take();  // before the wait: its branch keeps the assembler from waiting before it weighs
      waitForProducts<0>(output.sum);
      ring.release(values);
#pragma unroll
      for (int row = 0; row < Attention::kRowSlots; ++row) softmax.shrink(output, row, shrinkBy[row]);
      weights.pack(scores);
    }
    if (own < tiles) {  // keys that only others see
      ring.release(next);
      next = ring.take();
    }
    startOutput(next);
    waitForProducts<0>(output.sum);
    ring.release(next);
    for (int slot = 2 * own + 1; slot < 2 * tiles; ++slot) ring.release(ring.take());
  }
};

/// A block per tile of queries and head; the tile as QueryTile has it.
template <class Attention>
__global__ void __launch_bounds__(Attention::kThreads, 1)
    hopperAttentionForwardKernel(const __grid_constant__ HopperForwardArrays arrays, const __grid_constant__ AttentionShape shape) {
  using Shared = HopperForwardShared<Attention>;
  RLHF_SHARED_MEMORY(Shared, shared);
  const QueryTile<Attention> queries(shape);
  if (queries.count <= 0) return;
  const int head = BlockPlace().head;
  Attention::run(
      shared, queries.count,
      [&] {
        if (threadIdx.x == 0) produceKeys(shared, arrays, queries, head, shape.kvHeadOf(head));
      },
      [&](int group) { return ForwardConsumer<Attention>{shared, queries, shape, group}; },
      [&](ForwardConsumer<Attention>& consumer) {
        auto& softmax = consumer.softmax;
        softmax.finish(arrays.lse, shape.heads, head, [&](int row) { return queries.rowAt(row); });
        storeTile<Attention>(consumer.output, shared.sums, arrays.o, arrays.oStride, queries.sequence, queries.firstRow, head, shape.dim,
                             [&](int row) { return 1.0f / softmax.sum[row]; });
      });
}

}  // namespace rlhf::cuda
