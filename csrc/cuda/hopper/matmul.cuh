#pragma once
// matmulKernel of cuda/matmul.cuh for Hopper: tiles of both operands by TMA into a ring of stages, products by wgmma with their sums in
// registers. One warp copies, two warpgroups multiply, and they meet at the stages' barriers alone.

#include "cuda/hopper/ring.cuh"
#include "cuda/hopper/sums.cuh"
#include "cuda/matmul.cuh"
#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// A block's share of D, 128 × kColumns, and the ring that its operands go through, 64 values of k a stage.
template <int kColumns_>
struct HopperTile {
  static constexpr int kRows = 128, kColumns = kColumns_, kDepth = 64;
  static constexpr int kStages = kColumns == 256 ? 4 : 6;  // 192 KiB of the 227 that a block may have
  static constexpr int kConsumers = 2, kThreads = 128 * (1 + kConsumers);
  using Sums = HopperSums<kColumns>;
  // Registers of a thread: what the copying warpgroup does not need goes to the sums. 128 · (40 + 2 · 232) = 384 · 168.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

  struct Stage {
    alignas(1024) bf16 a[kRows * kDepth];
    alignas(1024) bf16 b[kColumns * kDepth];
  };
  struct Shared {
    union {
      Stage stage[kStages];
      typename Sums::Staged sums[4 * kConsumers];
    };
    RingBarriers<kStages> ring;
  };
};

/// MatmulArguments as the kernel needs them.
struct HopperOperands {
  TensorMap a[2], b[2];
  int tiles[2];  // of kDepth values of k
  int64_t rows, cols;
  float firstScale;
};

/// Copies kExtent values of i by 64 of k: one box whose rows are of k, or panels of 64 values of i whose rows are of i.
template <int kExtent, bool kOuter>
RLHF_DEVICE void copyOperand(bf16* shared, const TensorMap& map, int i, int k, TransactionBarrier* barrier) {
  if constexpr (kOuter) {
#pragma unroll
    for (int panel = 0; panel < kExtent / kBoxColumns; ++panel)
      copyBox(shared + panel * kBoxColumns * kBoxColumns, map, i + panel * kBoxColumns, k, barrier);
  } else {
    copyBox(shared, map, k, i, barrier);
  }
}

template <class Tile, bool kOuterA, bool kOuterB>
RLHF_DEVICE void producePair(typename Tile::Shared& shared, RingWriter<Tile::kStages>& ring, const TensorMap& a, const TensorMap& b,
                             int row, int col, int tiles) {
  for (int tile = 0; tile < tiles; ++tile) {
    const int slot = ring.take();
    typename Tile::Stage& stage = shared.stage[slot];
    TransactionBarrier* filled = &shared.ring.filled[slot];
    arriveExpecting(filled, sizeof stage.a + sizeof stage.b);
    copyOperand<Tile::kRows, kOuterA>(stage.a, a, row, tile * Tile::kDepth, filled);
    copyOperand<Tile::kColumns, kOuterB>(stage.b, b, col, tile * Tile::kDepth, filled);
  }
}

template <class Tile, bool kOuterA, bool kOuterB>
RLHF_DEVICE void consumePair(typename Tile::Shared& shared, RingReader<Tile::kStages>& ring, int tiles, int warpgroup,
                             typename Tile::Sums& sums) {
  constexpr int kPanelBytes = kBoxColumns * kBoxColumns * static_cast<int>(sizeof(bf16));
  constexpr int kStepA = kOuterA ? 2048 : 32, kStepB = kOuterB ? 2048 : 32;  // bytes to the next 16 values of k
  int previous = -1;  // the slot whose products may still run
  for (int tile = 0; tile < tiles; ++tile) {
    const int slot = ring.take();
    typename Tile::Stage& stage = shared.stage[slot];
    // 64 rows of A are a panel's worth of bytes in either order.
    const uint64_t a = advance(matrixDescriptor(stage.a, kPanelBytes), warpgroup * kPanelBytes);
    const uint64_t b = matrixDescriptor(stage.b, kPanelBytes);
    beginProducts(sums.sum);
#pragma unroll
    for (int step = 0; step < Tile::kDepth / 16; ++step)
      multiplyTiles<kOuterA, kOuterB>(sums.sum, advance(a, step * kStepA), advance(b, step * kStepB));
    commitProducts();
    waitForProducts<1>(sums.sum);
    if (previous >= 0) ring.release(previous);
    previous = slot;
  }
  waitForProducts<0>(sums.sum);
  if (previous >= 0) ring.release(previous);
}

/// Hands the sums to the epilogue.
template <class Tile, class Epilogue>
RLHF_DEVICE void finish(typename Tile::Shared& shared, typename Tile::Sums& sums, const Epilogue& epilogue, int64_t firstRow,
                        int64_t firstCol, int64_t rows, int64_t cols) {
  if constexpr (TakesTile<Epilogue>) {
    static_assert(std::is_empty_v<typename Epilogue::Shared>, "rows lie in one warp each");
    typename Epilogue::Shared none;
    epilogue(sums, firstRow, firstCol, rows, cols, none);
  } else {
    syncNamed(1, 128 * Tile::kConsumers);  // all have read the stages that the sums now overwrite
    storeSums(sums, shared.sums[Tile::Sums::warp()], epilogue, firstRow, firstCol, rows, cols, true);
  }
}

/// A block per kRows × kColumns tile of D; arguments as matmulKernel's. kOuter: the operand's rows are of i, not of k.
template <class Tile, bool kOuterA, bool kOuterB0, bool kOuterB1, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    hopperMatmulKernel(const __grid_constant__ HopperOperands operands, const __grid_constant__ Epilogue epilogue) {
  using Shared = typename Tile::Shared;
  RLHF_SHARED_MEMORY(Shared, shared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const TileOrder tile(static_cast<int>(blockIdx.x), tilesOf(operands.rows, Tile::kRows), tilesOf(operands.cols, Tile::kColumns));
  const int64_t firstRow = static_cast<int64_t>(tile.row) * Tile::kRows, firstCol = static_cast<int64_t>(tile.col) * Tile::kColumns;
  if (thread == 0) {
    shared.ring.init(4 * Tile::kConsumers);
    publishBarriers();
  }
  syncThreads();

  if (warp < 4) {
    setRegisters<Registers::GiveBack, Tile::kProducerRegisters>();
    if (thread > 0) return;
    RingWriter<Tile::kStages> ring{shared.ring};
    const int row = static_cast<int>(firstRow), col = static_cast<int>(firstCol);
    producePair<Tile, kOuterA, kOuterB0>(shared, ring, operands.a[0], operands.b[0], row, col, operands.tiles[0]);
    producePair<Tile, kOuterA, kOuterB1>(shared, ring, operands.a[1], operands.b[1], row, col, operands.tiles[1]);
  } else {
    setRegisters<Registers::Take, Tile::kConsumerRegisters>();
    RingReader<Tile::kStages> ring{shared.ring};
    typename Tile::Sums sums;
    consumePair<Tile, kOuterA, kOuterB0>(shared, ring, operands.tiles[0], warp / 4 - 1, sums);
#pragma unroll
    for (float& sum : sums.sum) sum *= operands.firstScale;
    consumePair<Tile, kOuterA, kOuterB1>(shared, ring, operands.tiles[1], warp / 4 - 1, sums);
    finish<Tile>(shared, sums, epilogue, firstRow, firstCol, operands.rows, operands.cols);
  }
}

}  // namespace rlhf::cuda
