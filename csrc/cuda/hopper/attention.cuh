#pragma once
// attentionForwardKernel of cuda/attention.cu for Hopper: keys and values by TMA through a ring of slots, products by wgmma, the softmax in
// registers. One warp copies; each of the other warpgroups has 64 queries, and multiplies the next keys while it weighs the last
// (FlashAttention 3, Shah et al. 2024).

#include "cuda/attention_rows.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/hopper/ring.cuh"
#include "cuda/hopper/sums.cuh"

namespace rlhf::cuda {

/// A block's tile of queries, tiles of keys, and how registers are shared out: narrow heads leave room for a third warpgroup.
template <int kDim_>
struct HopperAttention {
  static_assert(kDim_ == 64 || kDim_ == 128);
  static constexpr int kDim = kDim_, kPanels = kDim / kBoxColumns;
  static constexpr int kConsumers = kDim == 64 ? 3 : 2, kThreads = 128 * (1 + kConsumers);
  static constexpr int kGroupRows = 64, kRows = kGroupRows * kConsumers, kCols = 128;
  static constexpr int kStages = kDim == 64 ? 8 : 6;
  // 128 · (32 + 3 · 160) = 512 · 128 and 128 · (40 + 2 · 232) = 384 · 168
  static constexpr int kProducerRegisters = kDim == 64 ? 32 : 40, kConsumerRegisters = kDim == 64 ? 160 : 232;

  using Scores = HopperSums<kCols>;
  using Sums = HopperSums<kDim>;
  static constexpr int kRowSlots = 2, kColSlots = Scores::kColSlots, kDimSlots = Sums::kColSlots, kLanesPerRow = 4;
  static RLHF_DEVICE int rowOf(int slot) { return Scores::rowOf(slot); }
  static RLHF_DEVICE int colOf(int slot) { return Scores::colOf(slot); }
  static RLHF_DEVICE int warpFirstRow() { return 16 * Scores::warp(); }
  static RLHF_DEVICE int warpLastRow() { return warpFirstRow() + 15; }
  static RLHF_DEVICE float& score(Scores& scores, int row, int col) { return slotSum(scores, row, col); }
  static RLHF_DEVICE float& sum(Sums& sums, int row, int dim) { return slotSum(sums, row, dim); }

  /// Panels of 64 numbers of every row, as copyBox leaves them.
  template <int kTileRows>
  struct Tile {
    static constexpr int kRows = kTileRows, kPanelElements = kTileRows * kBoxColumns, kPanelBytes = 2 * kPanelElements;
    alignas(1024) bf16 data[kPanels * kPanelElements];
  };
  using RowTile = Tile<kRows>;
  using ColTile = Tile<kCols>;

  struct Shared {
    RowTile q;
    union {
      ColTile slot[kStages];  // keys and values, in the order in which they are used
      typename Sums::Staged sums[4 * kConsumers];
    };
    TransactionBarrier queries;
    TransactionBarrier filled[kStages];  // by the producer's arrival and the bytes that it expects
    TransactionBarrier free[kStages];    // by an arrival of each warp that has queries
  };
};

/// Maps of keys or values by the rows of their boxes: a tile's, and eight and one for a tile whose rows are of two sequences.
struct KeyMaps {
  static constexpr int kTile = 128, kFew = 8;
  TensorMap tile, few, one;
};

struct HopperAttentionArrays {
  TensorMap q;
  KeyMaps k, v;
  bf16* o;
  int64_t oStride;
  float* lse;
};

/// Rows of one head of a sequence.
struct HeadEpilogue {
  bf16* o;
  int64_t stride;

  template <int kCount>
  RLHF_DEVICE void storePack(int64_t row, int64_t col, const Pack<float, kCount>& sum) const {
    writePack(o + row * stride + col, sum);
  }
};

/// The warp that copies.
template <class Attention>
struct AttentionProducer {
  typename Attention::Shared& shared;
  const QueryTile<Attention>& queries;
  RingPosition<Attention::kStages> ring{};

  RLHF_DEVICE void copyQueries(const TensorMap& map, int column) {
    arriveExpecting(&shared.queries, sizeof shared.q);
    const int row = queries.sequence.begin + queries.firstRow;
#pragma unroll
    for (int panel = 0; panel < Attention::kPanels; ++panel)
      copyBox(shared.q.data + panel * Attention::RowTile::kPanelElements, map, column + panel * kBoxColumns, row, &shared.queries);
  }

  /// The next slot gets a tile of keys or values. Rows behind the sequence's end are those that follow in the batch, or zeros.
  RLHF_DEVICE void copyKeys(const KeyMaps& maps, int column, int tile) {
    using Tile = typename Attention::ColTile;
    static_assert(Tile::kRows == KeyMaps::kTile);
    Tile& slot = shared.slot[ring.stage];
    TransactionBarrier* filled = &shared.filled[ring.stage];
    waitFor(&shared.free[ring.stage], ring.parity ^ 1);  // passes at once when the ring is gone through for the first time
    arriveExpecting(filled, sizeof slot);
    const int firstKey = queries.firstKey(tile), inherited = queries.sequence.inherited;
#pragma unroll 1
    for (int row = 0; row < Tile::kRows;) {
      const int position = firstKey + row, left = Tile::kRows - row;
      const int together = position < inherited ? lesser(inherited - position, left) : left;
      const int rows = together == KeyMaps::kTile ? KeyMaps::kTile : row % KeyMaps::kFew == 0 && together >= KeyMaps::kFew ? KeyMaps::kFew : 1;
      const TensorMap& map = rows == KeyMaps::kTile ? maps.tile : rows == KeyMaps::kFew ? maps.few : maps.one;
#pragma unroll
      for (int panel = 0; panel < Attention::kPanels; ++panel)
        copyBox(slot.data + panel * Tile::kPanelElements + row * kBoxColumns, map, column + panel * kBoxColumns,
                queries.sequence.batchRow(position), filled);
      row += rows;
    }
    ring.advance();
  }

  /// A tile's values come behind the next tile's keys.
  RLHF_DEVICE void run(const HopperAttentionArrays& arrays, int head, int kvHead) {
    const int column = kvHead * Attention::kDim, tiles = queries.keyTiles();
    copyQueries(arrays.q, head * Attention::kDim);
    copyKeys(arrays.k, column, 0);
    for (int tile = 1; tile < tiles; ++tile) {
      copyKeys(arrays.k, column, tile);
      copyKeys(arrays.v, column, tile - 1);
    }
    copyKeys(arrays.v, column, tiles - 1);
  }
};

/// A warpgroup that has queries.
template <class Attention>
struct AttentionConsumer {
  typename Attention::Shared& shared;
  const QueryTile<Attention>& queries;
  const AttentionShape& shape;
  int group;  // of 64 queries
  RunningSoftmax<Attention> softmax{shape.scale * kLog2E};
  typename Attention::Scores scores{};
  typename Attention::Sums output{};
  uint32_t weights[Attention::kCols / 16][4] = {};  // as the second product takes them
  RingPosition<Attention::kStages> ring{};

  /// Waits for the next slot, and goes on behind it.
  RLHF_DEVICE int take() {
    const int slot = ring.stage;
    waitFor(&shared.filled[slot], ring.parity);
    ring.advance();
    return slot;
  }
  RLHF_DEVICE void release(int slot) {
    if (threadIdx.x % 32 == 0) arrive(&shared.free[slot]);
  }

  RLHF_DEVICE void startScores(int slot) {
    using Queries = typename Attention::RowTile;
    using Keys = typename Attention::ColTile;
    const uint64_t q = advance(matrixDescriptor(shared.q.data, 0), group * Attention::kGroupRows * kBoxColumns * 2);
    const uint64_t k = matrixDescriptor(shared.slot[slot].data, 0);
    beginProducts(scores.sum);
#pragma unroll
    for (int step = 0; step < Attention::kDim / 16; ++step) {
      const int panel = step / 4, bytes = step % 4 * 32;
      multiplyTiles<false, false>(scores.sum, advance(q, panel * Queries::kPanelBytes + bytes),
                                  advance(k, panel * Keys::kPanelBytes + bytes), step > 0);
    }
    commitProducts();
  }

  RLHF_DEVICE void startOutput(int slot) {
    const uint64_t v = matrixDescriptor(shared.slot[slot].data, Attention::ColTile::kPanelBytes);
    beginProducts(output.sum);
#pragma unroll
    for (int step = 0; step < Attention::kCols / 16; ++step)
      multiplyFragment<true>(output.sum, weights[step], advance(v, step * 2048));
    commitProducts();
  }

  RLHF_DEVICE void weigh(int tile) {
    queries.hide(scores, shape, tile);
    softmax.weigh(scores);
  }

  /// The scores' registers, rounded in pairs, lie as a factor's.
  RLHF_DEVICE void packWeights() {
#pragma unroll
    for (int step = 0; step < Attention::kCols / 16; ++step) {
#pragma unroll
      for (int r = 0; r < 4; ++r) weights[step][r] = packPair<bf16>(scores.sum[8 * step + 2 * r], scores.sum[8 * step + 2 * r + 1]);
      pin(weights[step]);
    }
  }

  /// Goes through the tiles that any of the warpgroup's queries sees, and past those that only others see.
  RLHF_DEVICE void run() {
    const int tiles = queries.keyTiles(), own = queries.keyTilesOf(Attention::kGroupRows * (group + 1));
    waitFor(&shared.queries, 0);
    const int first = take();
    startScores(first);
    waitForProducts<0>(scores.sum);
    release(first);
    weigh(0);
    packWeights();
    int next = take();
#pragma unroll 1
    for (int tile = 1; tile < own; ++tile) {
      const int keys = next;
      startScores(keys);
      const int values = take();
      startOutput(values);
      waitForProducts<1>(scores.sum);
      release(keys);
      weigh(tile);
      next = take();  // before the wait: its branch keeps the assembler from waiting before it weighs
      waitForProducts<0>(output.sum);
      release(values);
      softmax.shrink(output);
      packWeights();
    }
    if (own < tiles) {  // keys that only others see
      release(next);
      next = take();
    }
    startOutput(next);
    waitForProducts<0>(output.sum);
    release(next);
    for (int slot = 2 * own + 1; slot < 2 * tiles; ++slot) release(take());
  }

  RLHF_DEVICE void store(const HopperAttentionArrays& arrays, int head, int consumers) {
    softmax.finish(arrays.lse, shape.heads, head, [&](int row) { return queries.rowAt(row); });
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) {
#pragma unroll
      for (int dim = 0; dim < Attention::kDimSlots; ++dim) Attention::sum(output, row, dim) *= 1.0f / softmax.sum[row];
    }
    syncNamed(1, 128 * consumers);  // all have read the slots that the sums now overwrite
    auto& staged = shared.sums[Attention::Sums::warp()];
    output.stage(staged, 0);
    syncWarp();
    const HeadEpilogue epilogue{arrays.o + queries.sequence.begin * arrays.oStride + head * Attention::kDim, arrays.oStride};
    staged.store(epilogue, queries.firstRow + Attention::warpFirstRow(), 0, queries.sequence.length, Attention::kDim, true);
  }
};

/// A block per tile of queries and head; the tile as QueryTile has it.
template <class Attention>
__global__ void __launch_bounds__(Attention::kThreads, 1)
    hopperAttentionKernel(const __grid_constant__ HopperAttentionArrays arrays, const __grid_constant__ AttentionShape shape, int tiles) {
  using Shared = typename Attention::Shared;
  RLHF_SHARED_MEMORY(Shared, shared);
  const QueryTile<Attention> queries(shape, tiles);
  if (queries.count <= 0) return;
  const int consumers = (queries.count + Attention::kGroupRows - 1) / Attention::kGroupRows;
  const int head = static_cast<int>(blockIdx.y), warp = shuffle(static_cast<int>(threadIdx.x) / 32, 0);  // of all lanes, as the compiler sees
  if (threadIdx.x == 0) {
    initBarrier(&shared.queries, 1);
    for (int stage = 0; stage < Attention::kStages; ++stage) {
      initBarrier(&shared.filled[stage], 1);
      initBarrier(&shared.free[stage], 4 * consumers);
    }
    publishBarriers();
  }
  syncThreads();

  if (warp < 4) {
    setRegisters<Registers::GiveBack, Attention::kProducerRegisters>();
    if (threadIdx.x > 0) return;
    AttentionProducer<Attention>{shared, queries}.run(arrays, head, shape.kvHeadOf(head));
  } else {
    setRegisters<Registers::Take, Attention::kConsumerRegisters>();
    const int group = warp / 4 - 1;
    if (group >= consumers) return;
    AttentionConsumer<Attention> consumer{shared, queries, shape, group};
    consumer.run();
    consumer.store(arrays, head, consumers);
  }
}

}  // namespace rlhf::cuda
