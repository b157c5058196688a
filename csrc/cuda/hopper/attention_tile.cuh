#pragma once
// What attention's passes share on Hopper: tiles of rows as TMA leaves them, the two products of wgmma, and how rows come and go.

#include "cuda/attention_rows.cuh"
#include "cuda/hopper/ring.cuh"
#include "cuda/hopper/sums.cuh"
#include "cuda/prim/capability.h"

namespace rlhf::cuda {

/// Rows of one head, panels of 64 numbers of every row.
template <int kRows_, int kDim_>
struct HeadTile {
  static constexpr int kRows = kRows_, kPanels = kDim_ / kBoxColumns, kPanelElements = kRows * kBoxColumns;
  static constexpr int kPanelBytes = kPanelElements * static_cast<int>(sizeof(bf16));
  alignas(1024) bf16 data[kPanels * kPanelElements];

  /// Starts the copy of a head's boxes to the tile's rows from `to` on.
  RLHF_DEVICE void copy(const TensorMap& map, int head, int row, TransactionBarrier* barrier, int to = 0) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel)
      copyHeadBox(data + panel * kPanelElements + to * kBoxColumns, map, panel * kBoxColumns, head, row, barrier);
  }
};

/// A block's tile of kRows rows, 64 for each warpgroup but the one that copies, against tiles of kCols columns: the interface that
/// cuda/attention_rows.cuh asks for.
template <int kDim_, int kConsumers_, int kCols_>
struct HopperAttention {
  static_assert(kDim_ == 64 || kDim_ == 128);
  static constexpr int kDim = kDim_, kConsumers = kConsumers_, kThreads = 128 * (1 + kConsumers);
  static constexpr int kGroupRows = 64, kRows = kGroupRows * kConsumers, kCols = kCols_;
  // 128 · (32 + 3 · 160) = 512 · 128 and 128 · (24 + 2 · 240) = 384 · 168
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24, kConsumerRegisters = kConsumers == 3 ? 160 : 240;

  using Scores = HopperSums<kCols>;
  using Sums = HopperSums<kDim>;
  using Staged = typename Sums::Staged;
  using RowTile = HeadTile<kRows, kDim>;
  using ColTile = HeadTile<kCols, kDim>;
  static constexpr int kRowSlots = 2, kColSlots = Scores::kColSlots, kDimSlots = Sums::kColSlots, kLanesPerRow = 4;
  static RLHF_DEVICE int rowOf(int slot) { return Scores::rowOf(slot); }
  static RLHF_DEVICE int colOf(int slot) { return Scores::colOf(slot); }
  static RLHF_DEVICE int warpFirstRow() { return 16 * Scores::warp(); }
  static RLHF_DEVICE int warpLastRow() { return warpFirstRow() + 15; }
  static RLHF_DEVICE float& score(Scores& scores, int row, int col) { return slotSum(scores, row, col); }
  static RLHF_DEVICE float& sum(Sums& sums, int row, int dim) { return slotSum(sums, row, dim); }

  /// What a block does whose tile has `rows` rows: the first warp runs produce(); each warpgroup that has rows runs consumer(group), once
  /// the tile is filled, and hands it to finish() where all have read the slots of the ring.
  template <class Shared, class Produce, class Consumer, class Finish>
  static RLHF_DEVICE void run(Shared& shared, int rows, Produce&& produce, Consumer&& consumer, Finish&& finish) {
    const int consumers = (rows + kGroupRows - 1) / kGroupRows;
    const int group = shuffle(static_cast<int>(threadIdx.x) / 128, 0) - 1;  // of all lanes, as the compiler sees
    if (threadIdx.x == 0) {
      initBarrier(&shared.rowsFilled, 1);
      shared.ring.init(4 * consumers);
      publishBarriers();
    }
    syncThreads();
    if (group < 0) {
      setRegisters<Registers::GiveBack, kProducerRegisters>();
      if (threadIdx.x < 32) produce();
    } else {
      setRegisters<Registers::Take, kConsumerRegisters>();
      if (group >= consumers) return;
      auto sums = consumer(group);
      waitFor(&shared.rowsFilled, 0);
      sums.run();
      syncNamed(1, 128 * consumers);
      finish(sums);
    }
  }

  /// Starts scores = A·Bᵀ of a warpgroup's rows.
  static RLHF_DEVICE void startScores(Scores& scores, const RowTile& a, int group, const ColTile& b) {
    const uint64_t factorA = advance(matrixDescriptor(a.data, 0), group * kGroupRows * kBoxColumns * 2), factorB = matrixDescriptor(b.data, 0);
    beginProducts(scores.sum);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int panel = step / 4, bytes = step % 4 * 32;
      multiplyTiles<false, false>(scores.sum, advance(factorA, panel * RowTile::kPanelBytes + bytes),
                                  advance(factorB, panel * ColTile::kPanelBytes + bytes), step > 0);
    }
    commitProducts();
  }

  /// Weights as a factor of the second product: the scores' registers, rounded in pairs, lie as it takes them.
  struct Weights {
    uint32_t fragment[kCols / 16][4] = {};

    RLHF_DEVICE void pack(const Scores& weights) {
#pragma unroll
      for (int step = 0; step < kCols / 16; ++step) {
#pragma unroll
        for (int r = 0; r < 4; ++r) fragment[step][r] = packPair<bf16>(weights.sum[8 * step + 2 * r], weights.sum[8 * step + 2 * r + 1]);
        pin(fragment[step]);
      }
    }
  };

  /// Starts sums += weights·B.
  static RLHF_DEVICE void startSums(Sums& sums, const Weights& weights, const ColTile& b) {
    const uint64_t factorB = matrixDescriptor(b.data, ColTile::kPanelBytes);
    beginProducts(sums.sum);
#pragma unroll
    for (int step = 0; step < kCols / 16; ++step) multiplyFragment<true>(sums.sum, weights.fragment[step], advance(factorB, step * 2048));
    commitProducts();
  }
};

/// Maps of keys or values by the rows of their boxes: a tile's, and eight and one for a tile whose rows are of two sequences.
struct KeyMaps {
  static constexpr int kFew = 8;
  TensorMap tile, few, one;
};

/// Starts the copy of the keys or values at positions of a sequence from firstKey on. Rows behind its end are those that follow in the
/// batch, or zeros.
template <class Tile>
RLHF_DEVICE void copyKeys(Tile& tile, const KeyMaps& maps, int kvHead, const SequenceRows& sequence, int firstKey,
                          TransactionBarrier* filled) {
#pragma unroll 1
  for (int row = 0; row < Tile::kRows;) {
    const int position = firstKey + row, left = Tile::kRows - row;
    const int together = position < sequence.inherited ? lesser(sequence.inherited - position, left) : left;
    const int rows = together == Tile::kRows ? Tile::kRows : row % KeyMaps::kFew == 0 && together >= KeyMaps::kFew ? KeyMaps::kFew : 1;
    tile.copy(rows == Tile::kRows ? maps.tile : rows == KeyMaps::kFew ? maps.few : maps.one, kvHead, sequence.batchRow(position), filled, row);
    row += rows;
  }
}

/// Rows of one head.
struct HeadEpilogue {
  bf16* data;
  int64_t stride;

  template <int kCount>
  RLHF_DEVICE void storePack(int64_t row, int64_t col, const Pack<float, kCount>& sum) const {
    writePack(data + row * stride + col, sum);
  }
};

/// Writes the rows of a calling warp's sums times factor(rowSlot), at one head `dim` wide, to those of a sequence's own from firstRow on. Through
/// shared memory that nobody else uses.
template <class Attention, class Factor>
RLHF_DEVICE void storeTile(typename Attention::Sums& sums, typename Attention::Staged* staged, bf16* data, int64_t stride,
                           const SequenceRows& sequence, int firstRow, int head, int dim, Factor&& factor) {
#pragma unroll
  for (int row = 0; row < Attention::kRowSlots; ++row) {
    const float scale = factor(row);
#pragma unroll
    for (int slot = 0; slot < Attention::kDimSlots; ++slot) Attention::sum(sums, row, slot) *= scale;
  }
  auto& mine = staged[Attention::Sums::warp()];
  sums.stage(mine, 0);
  syncWarp();
  const HeadEpilogue epilogue{data + sequence.begin * stride + head * dim, stride};
  mine.store(epilogue, firstRow + Attention::warpFirstRow(), 0, sequence.length, dim, true);
}

/// Whether the device has the kernels and they take heads so wide and arrays so placed. Widths between are filled up with zeros; of narrow
/// heads too much would be zeros.
template <class Arguments>
bool coversHeads(const Arguments& a, std::initializer_list<const void*> arrays) {
  return chosenCapability() == 90 && a.headDim > 32 && a.headDim <= 128 && shapeOf(a, sizeof(bf16), arrays).isAligned;
}

/// Calls f(width) with 64 or 128, a constant, whichever covered heads fit in.
template <class Function>
void dispatchTileWidth(int64_t headDim, Function&& f) {
  if (headDim <= 64) f(std::integral_constant<int, 64>());
  else f(std::integral_constant<int, 128>());
}

template <class Arguments>
KeyMaps keyMaps(const Arguments& a, const void* array, int64_t stride, int tileRows) {
  const auto map = [&](int boxRows) { return makeHeadMap(array, a.rows, a.kvHeads, a.headDim, stride, boxRows); };
  if (!a.parents) return {map(tileRows), {}, {}};
  return {map(tileRows), map(KeyMaps::kFew), map(1)};
}

}  // namespace rlhf::cuda
