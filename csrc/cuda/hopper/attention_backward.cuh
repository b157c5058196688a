#pragma once
// The kernels of cuda/attention_backward.cu for Hopper, with the same sums in the same order: dq over keys, dk and dv over the queries that
// see a tile of keys. What they read comes by TMA through a ring of slots, products by wgmma; weights and gradients of scores are factors
// from registers.

#include "cuda/hopper/attention_tile.cuh"

namespace rlhf::cuda {

// Scores and their gradients stand side by side in registers, beside one array of sums or two.
template <int kDim>
using QueryGradientTile = HopperAttention<kDim, 2, kDim == 64 ? 128 : 64>;
template <int kDim>
using KeyGradientTile = HopperAttention<kDim, 2, 64>;

inline constexpr int kGradientStages = 4;

template <class Attention>
struct HopperQueryShared {
  struct Slot {
    typename Attention::ColTile k, v;
  };
  typename Attention::RowTile q, dO;
  union {
    Slot slot[kGradientStages];
    typename Attention::Staged sums[4 * Attention::kConsumers];
  };
  TransactionBarrier rowsFilled;
  RingBarriers<kGradientStages> ring;
};

struct HopperQueryArrays {
  TensorMap q, dO;
  KeyMaps k, v;
  const float* lse;
  const float* delta;
  bf16* dq;
  int64_t stride;
};

/// The thread that copies for a tile of queries.
template <class Attention>
RLHF_DEVICE void produceKeyPairs(HopperQueryShared<Attention>& shared, const HopperQueryArrays& arrays, const QueryTile<Attention>& queries,
                                 int head, int kvHead) {
  const int row = queries.sequence.begin + queries.firstRow;
  arriveExpecting(&shared.rowsFilled, sizeof shared.q + sizeof shared.dO);
  shared.q.copy(arrays.q, head, row, &shared.rowsFilled);
  shared.dO.copy(arrays.dO, head, row, &shared.rowsFilled);
  RingWriter<kGradientStages> ring{shared.ring};
  const int tiles = queries.keyTiles();
  for (int tile = 0; tile < tiles; ++tile) {
    const int at = ring.take();
    auto& slot = shared.slot[at];
    TransactionBarrier* filled = &shared.ring.filled[at];
    arriveExpecting(filled, sizeof slot);
    copyKeys(slot.k, arrays.k, kvHead, queries.sequence, queries.firstKey(tile), filled);
    copyKeys(slot.v, arrays.v, kvHead, queries.sequence, queries.firstKey(tile), filled);
  }
}

/// A warpgroup that has queries.
template <class Attention>
struct QueryGradients {
  HopperQueryShared<Attention>& shared;
  const QueryTile<Attention>& queries;
  const AttentionShape& shape;
  int group;  // of 64 queries
  float lse[Attention::kRowSlots]{}, delta[Attention::kRowSlots]{};
  typename Attention::Sums dq{};
  typename Attention::Scores scores{}, gradients{};
  typename Attention::Weights factor{};
  RingReader<kGradientStages> ring{shared.ring};

  RLHF_DEVICE void readStatistics(const HopperQueryArrays& arrays, int head) {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) {
      const int64_t at = queries.rowAt(Attention::rowOf(row));
      lse[row] = at < 0 ? 0.0f : arrays.lse[at * shape.heads + head] * kLog2E;
      delta[row] = at < 0 ? 0.0f : arrays.delta[at * shape.heads + head];
    }
  }

  RLHF_DEVICE void startScores(int slot) {
    Attention::startScores(scores, shared.q, group, shared.slot[slot].k);
    Attention::startScores(gradients, shared.dO, group, shared.slot[slot].v);
  }
  RLHF_DEVICE void startSums(int slot) { Attention::startSums(dq, factor, shared.slot[slot].k); }

  RLHF_DEVICE void weigh(int tile) {
    queries.hide(scores, shape, tile);
    forEachScore<Attention>(gradients, [&](int row, int col, float& gradient) {
      const float score = Attention::score(scores, row, col) * (shape.scale * kLog2E);
      gradient = exp2Approx(score - lse[row]) * (gradient - delta[row]);
    });
  }

  /// Goes through the tiles that any of the warpgroup's queries sees, and past those that only others see.
  RLHF_DEVICE void run() {
    const int tiles = queries.keyTiles(), own = queries.keyTilesOf(Attention::kGroupRows * (group + 1));
    int slot = ring.take();
    startScores(slot);
    waitForProducts<0>(scores.sum);
    pin(gradients.sum);
    weigh(0);
    factor.pack(gradients);
    int next = own > 1 ? ring.take() : 0;
#pragma unroll 1
    for (int tile = 1; tile < own; ++tile) {
      const int previous = slot;
      slot = next;
      startScores(slot);
      startSums(previous);
      waitForProducts<1>(scores.sum);
      pin(gradients.sum);
      weigh(tile);
      if (tile + 1 < own) next = ring.take();  // before the wait: its branch keeps the assembler from waiting before it weighs
      waitForProducts<0>(dq.sum);
      ring.release(previous);
      factor.pack(gradients);
    }
    startSums(slot);
    waitForProducts<0>(dq.sum);
    ring.release(slot);
    for (int tile = own; tile < tiles; ++tile) ring.release(ring.take());
  }
};

/// dq of a tile of queries.
template <class Attention>
__global__ void __launch_bounds__(Attention::kThreads, 1)
    hopperQueryGradientKernel(const __grid_constant__ HopperQueryArrays arrays, const __grid_constant__ AttentionShape shape) {
  using Shared = HopperQueryShared<Attention>;
  RLHF_SHARED_MEMORY(Shared, shared);
  const QueryTile<Attention> queries(shape);
  if (queries.count <= 0) return;
  const int head = BlockPlace().head;
  Attention::run(
      shared, queries.count,
      [&] {
        if (threadIdx.x == 0) produceKeyPairs(shared, arrays, queries, head, shape.kvHeadOf(head));
      },
      [&](int group) {
        QueryGradients<Attention> gradients{shared, queries, shape, group};
        gradients.readStatistics(arrays, head);
        return gradients;
      },
      [&](QueryGradients<Attention>& gradients) {
        storeTile<Attention>(gradients.dq, shared.sums, arrays.dq, arrays.stride, queries.sequence, queries.firstRow, head, shape.dim,
                             [&](int) { return shape.scale; });
      });
}

template <class Attention>
struct HopperKeyShared {
  struct Slot {
    typename Attention::ColTile q, dO;
    float lse[Attention::kCols], delta[Attention::kCols];
  };
  typename Attention::RowTile k, v;
  union {
    Slot slot[kGradientStages];
    typename Attention::Staged sums[4 * Attention::kConsumers];
  };
  TransactionBarrier rowsFilled;
  RingBarriers<kGradientStages> ring;
};

struct HopperKeyArrays {
  TensorMap k, v, q, dO;
  const float* lse;
  const float* delta;
  bf16* dk;
  bf16* dv;
  int64_t kStride, vStride;
};

/// A block's tile of a sequence's own keys, and the queries that see them: of the sequence first and then of its children, of all heads
/// that share the key head.
template <class Attention>
struct KeyTile {
  const AttentionShape& shape;
  int index, kvHead, firstRow;
  SequenceRows sequence;
  int keys;

  /// The calling block's tile; a sequence's first keys are seen by the most queries.
  explicit RLHF_DEVICE KeyTile(const AttentionShape& given) : KeyTile(given, BlockPlace()) {}
  RLHF_DEVICE KeyTile(const AttentionShape& given, const BlockPlace& place)
      : shape(given),
        index(place.sequence),
        kvHead(place.head),
        firstRow(place.tile * Attention::kRows),
        sequence(given, index),
        keys(lesser(Attention::kRows, sequence.length - firstRow)) {}

  /// Calls each(sequence, row, head) for every tile of queries: kCols rows of a sequence from one on, at one head.
  template <class Each>
  RLHF_DEVICE void forEachQueries(Each&& each) const {
    const int group = shape.heads / shape.kvHeads, firstKey = sequence.inherited + firstRow;
#pragma unroll 1
    for (int other = index; other < shape.sequences; other = shape.nextChild(index, other)) {
      const SequenceRows rows(shape, other);
      const QueriesOfKeys queries(shape, rows, firstKey, keys, Attention::kCols);
#pragma unroll 1
      for (int tile = 0; tile < group * queries.tiles; ++tile)
        each(rows, queries.firstRow + tile % queries.tiles * Attention::kCols, kvHead * group + tile / queries.tiles);
    }
  }
};

/// The warp that copies for a tile of keys: its first lane the tiles, all the queries' statistics. A query behind the sequence's end weighs
/// nothing.
template <class Attention>
RLHF_DEVICE void produceQueries(HopperKeyShared<Attention>& shared, const HopperKeyArrays& arrays, const KeyTile<Attention>& tile) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane == 0) {
    const int row = tile.sequence.begin + tile.firstRow;
    arriveExpecting(&shared.rowsFilled, sizeof shared.k + sizeof shared.v);
    shared.k.copy(arrays.k, tile.kvHead, row, &shared.rowsFilled);
    shared.v.copy(arrays.v, tile.kvHead, row, &shared.rowsFilled);
  }
  RingWriter<kGradientStages> ring{shared.ring};
  tile.forEachQueries([&](const SequenceRows& sequence, int firstRow, int head) {
    const int at = ring.take();
    auto& slot = shared.slot[at];
    TransactionBarrier* filled = &shared.ring.filled[at];
    if (lane == 0) {
      slot.q.copy(arrays.q, head, sequence.begin + firstRow, filled);
      slot.dO.copy(arrays.dO, head, sequence.begin + firstRow, filled);
    }
#pragma unroll
    for (int col = lane; col < Attention::kCols; col += 32) {
      const int64_t row = sequence.ownRow(firstRow + col);
      slot.lse[col] = row < 0 ? INFINITY : arrays.lse[row * tile.shape.heads + head] * kLog2E;
      slot.delta[col] = row < 0 ? 0.0f : arrays.delta[row * tile.shape.heads + head];
    }
    syncWarp();
    if (lane == 0) arriveExpecting(filled, sizeof slot.q + sizeof slot.dO);
  });
}

/// A warpgroup that has keys. Scores are transposed here, [key][query], so that weights and gradients are first factors of dv and dk.
template <class Attention>
struct HopperKeyGradients {
  HopperKeyShared<Attention>& shared;
  const KeyTile<Attention>& tile;
  int group;  // of 64 keys
  typename Attention::Sums dk{}, dv{};
  typename Attention::Scores weights{}, gradients{};
  typename Attention::Weights weightFactor{}, gradientFactor{};
  RingReader<kGradientStages> ring{shared.ring};

  RLHF_DEVICE void hide(const TileMask& mask) {
    constexpr int kLast = Attention::kCols - 1;
    if (mask.sees(0, Attention::warpLastRow()) && mask.sees(kLast, Attention::warpFirstRow())) return;
    forEachScore<Attention>(weights, [&](int row, int col, float& score) {
      if (!mask.sees(Attention::colOf(col), Attention::rowOf(row))) score = -INFINITY;
    });
  }

  RLHF_DEVICE void addQueries(const TileMask& mask, const typename HopperKeyShared<Attention>::Slot& slot) {
    Attention::startScores(weights, shared.k, group, slot.q);
    Attention::startScores(gradients, shared.v, group, slot.dO);
    waitForProducts<1>(weights.sum);
    hide(mask);
    forEachScore<Attention>(weights, [&](int, int col, float& weight) {
      weight = exp2Approx(weight * (tile.shape.scale * kLog2E) - slot.lse[Attention::colOf(col)]);
    });
    weightFactor.pack(weights);
    Attention::startSums(dv, weightFactor, slot.dO);
    waitForProducts<1>(gradients.sum);
    forEachScore<Attention>(gradients, [&](int row, int col, float& gradient) {
      gradient = Attention::score(weights, row, col) * (gradient - slot.delta[Attention::colOf(col)]);
    });
    gradientFactor.pack(gradients);
    Attention::startSums(dk, gradientFactor, slot.q);
    waitForProducts<0>(dk.sum);
    pin(dv.sum);
  }

  RLHF_DEVICE void run() {
    const int firstKey = tile.sequence.inherited + tile.firstRow;
    tile.forEachQueries([&](const SequenceRows& sequence, int firstRow, int) {
      const int slot = ring.take();
      const TileMask mask(tile.shape, sequence.inherited + firstRow, firstKey);
      if (!mask.hidesAll(Attention::kCols - 1, Attention::kGroupRows * group)) addQueries(mask, shared.slot[slot]);
      ring.release(slot);
    });
  }
};

/// dk and dv of a tile of a sequence's own keys.
template <class Attention>
__global__ void __launch_bounds__(Attention::kThreads, 1)
    hopperKeyGradientKernel(const __grid_constant__ HopperKeyArrays arrays, const __grid_constant__ AttentionShape shape) {
  using Shared = HopperKeyShared<Attention>;
  RLHF_SHARED_MEMORY(Shared, shared);
  const KeyTile<Attention> tile(shape);
  if (tile.keys <= 0) return;
  Attention::run(
      shared, tile.keys, [&] { produceQueries(shared, arrays, tile); },
      [&](int group) { return HopperKeyGradients<Attention>{shared, tile, group}; },
      [&](HopperKeyGradients<Attention>& gradients) {
        const auto store = [&](typename Attention::Sums& sums, bf16* data, int64_t stride, float factor) {
          storeTile<Attention>(sums, shared.sums, data, stride, tile.sequence, tile.firstRow, tile.kvHead, shape.dim,
                               [&](int) { return factor; });
        };
        store(gradients.dk, arrays.dk, arrays.kStride, shape.scale);
        syncWarp();
        store(gradients.dv, arrays.dv, arrays.vStride, 1.0f);
      });
}

}  // namespace rlhf::cuda
