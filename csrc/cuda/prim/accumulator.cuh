#pragma once
#include "cuda/prim/staged_rows.cuh"
#include "cuda/prim/tile.cuh"

namespace rlhf::cuda {

// Two ways for a block to multiply tiles, with one interface. A thread holds kRowSlots × kColSlots sums;
// rowOf and colOf tell which element of the block's tile a slot is. A row of the tile lies with kLanesPerRow neighbouring
// lanes of each of kWarpsPerRow warps. A warp's sums are kStrips strips of neighbouring rows, which stage() puts into shared memory one at
// a time; stripRow and stripCol tell where in the tile they begin. Sums run over k in one order, whatever the number of rows.

/// float32 by fused multiply-add: 64 × 64 tiles, 4 × 4 sums per thread.
struct FmaTile {
  using Element = float;
  static constexpr int kRows = 64, kCols = 64, kDepth = 16, kThreads = 256, kStages = 3;
  static constexpr int kStep = 4, kParts = 1;  // values of k read at once: 16 bytes; none ahead, for registers' sake
  static constexpr int kBlocksPerMultiprocessor = 2;
  static constexpr int kRowSlots = 4, kColSlots = 4;
  static constexpr int kLanesPerRow = 16, kWarpsPerRow = 1;
  using TileA = SharedTile<float, kRows, kDepth>;
  using TileB = SharedTile<float, kCols, kDepth>;
  static constexpr int kStrips = kRowSlots;
  using Staged = StagedRows<2, kCols, 16>;

  float sum[kRowSlots][kColSlots] = {};

  // Neighbouring lanes own neighbouring columns: their loads hit different banks and their stores are contiguous.
  static RLHF_DEVICE int rowOf(int slot) { return static_cast<int>(threadIdx.x) / 16 + 16 * slot; }
  static RLHF_DEVICE int colOf(int slot) { return static_cast<int>(threadIdx.x) % 16 + 16 * slot; }
  static RLHF_DEVICE int warpInRow() { return 0; }
  static RLHF_DEVICE int stripRow(int strip) { return static_cast<int>(threadIdx.x) / 32 * 2 + 16 * strip; }
  static RLHF_DEVICE int stripCol() { return 0; }

  RLHF_DEVICE void stage(Staged& staged, int strip) const {
    const int row = static_cast<int>(threadIdx.x) / 16 % 2;
#pragma unroll
    for (int slot = 0; slot < kRowSlots; ++slot) {  // the strip is known at run time only, registers at compile time
      if (slot != strip) continue;
#pragma unroll
      for (int col = 0; col < kColSlots; ++col) staged.row[row][colOf(col)] = sum[slot][col];
    }
  }

  /// What a step of kStep values of k takes from shared memory.
  struct Part {
    float a[kRowSlots][kStep], b[kColSlots][kStep];
  };

  template <bool kOuterA, bool kOuterB>
  static RLHF_DEVICE void read(Part& part, const TileA& a, const TileB& b, int step) {
#pragma unroll
    for (int slot = 0; slot < kRowSlots; ++slot) readStep<kOuterA>(part.a[slot], a, rowOf(slot), step * kStep);
#pragma unroll
    for (int slot = 0; slot < kColSlots; ++slot) readStep<kOuterB>(part.b[slot], b, colOf(slot), step * kStep);
  }

  RLHF_DEVICE void multiply(const Part& part) {
#pragma unroll
    for (int step = 0; step < kStep; ++step) {
#pragma unroll
      for (int row = 0; row < kRowSlots; ++row) {
#pragma unroll
        // Fused by its name: a compiler that fuses at will may do so in one kernel and not in another, whose sums shall be the same.
        for (int col = 0; col < kColSlots; ++col) sum[row][col] = fmaf(part.a[row][step], part.b[col][step], sum[row][col]);
      }
    }
  }

 private:
  template <bool kOuter, class Tile>
  static RLHF_DEVICE void readStep(float (&values)[kStep], const Tile& tile, int i, int k) {
    if constexpr (kOuter) {
#pragma unroll
      for (int step = 0; step < kStep; ++step) values[step] = *tile.template at<true>(i, k + step);
    } else {
      const auto pack = *reinterpret_cast<const Pack<float, kStep>*>(tile.template at<false>(i, k));
#pragma unroll
      for (int step = 0; step < kStep; ++step) values[step] = pack.item[step];
    }
  }
};

/// How a block shares a tile of D: so many warps below and beside each other, of so many rows and columns each.
template <int kWarpsPerColumn_, int kWarpsPerRow_, int kWarpRows_, int kWarpCols_>
struct WarpGrid {
  static constexpr int kWarpsPerColumn = kWarpsPerColumn_, kWarpsPerRow = kWarpsPerRow_, kWarpRows = kWarpRows_, kWarpCols = kWarpCols_;
};

/// bfloat16 or float16 on tensor cores with float32 sums. What a warp reads from shared memory for 16 values of k serves all products of
/// its rows with its columns: 128 bytes for a product where it has 64 × 64 of them, 192 with 64 × 32.
template <class T, class Grid, int kDepth_, int kStages_>
struct TensorCoreTile : Grid {
  using Element = T;
  using Grid::kWarpsPerColumn, Grid::kWarpsPerRow, Grid::kWarpRows, Grid::kWarpCols;
  static constexpr int kRows = kWarpRows * kWarpsPerColumn, kCols = kWarpCols * kWarpsPerRow, kDepth = kDepth_, kStep = 16, kParts = 2;
  static constexpr int kThreads = 32 * kWarpsPerColumn * kWarpsPerRow, kStages = kStages_;
  static constexpr int kBlocksPerMultiprocessor = 256 / kThreads;  // leaves a thread 255 registers
  static constexpr int kRowSlots = kWarpRows / 8, kColSlots = kWarpCols / 4, kLanesPerRow = 4;
  using TileA = SharedTile<T, kRows, kDepth>;
  using TileB = SharedTile<T, kCols, kDepth>;

  static constexpr int kFragmentRows = kWarpRows / 16, kFragmentCols = kWarpCols / 8;  // of 16 × 8 elements
  float fragment[kFragmentRows][kFragmentCols][4] = {};
  static constexpr int kStrips = kFragmentRows;
  using Staged = StagedRows<16, kWarpCols, 8>;

  static RLHF_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static RLHF_DEVICE int warpInRow() { return static_cast<int>(threadIdx.x) / 32 % kWarpsPerRow; }
  static RLHF_DEVICE int firstRow() { return static_cast<int>(threadIdx.x) / 32 / kWarpsPerRow * kWarpRows; }
  static RLHF_DEVICE int firstCol() { return warpInRow() * kWarpCols; }
  static RLHF_DEVICE int stripRow(int strip) { return firstRow() + 16 * strip; }
  static RLHF_DEVICE int stripCol() { return firstCol(); }
  static RLHF_DEVICE int rowOf(int slot) { return firstRow() + slot / 2 * 16 + slot % 2 * 8 + lane() / 4; }
  static RLHF_DEVICE int colOf(int slot) { return firstCol() + slot / 2 * 8 + lane() % 4 * 2 + slot % 2; }

  RLHF_DEVICE void stage(Staged& staged, int strip) const {
    const int group = lane() / 4, pair = lane() % 4;
#pragma unroll
    for (int row = 0; row < kFragmentRows; ++row) {  // the strip is known at run time only, registers at compile time
      if (row != strip) continue;
#pragma unroll
      for (int col = 0; col < kFragmentCols; ++col) {
        const float(&sums)[4] = fragment[row][col];
        *reinterpret_cast<Pack<float, 2>*>(&staged.row[group][8 * col + 2 * pair]) = {sums[0], sums[1]};
        *reinterpret_cast<Pack<float, 2>*>(&staged.row[group + 8][8 * col + 2 * pair]) = {sums[2], sums[3]};
      }
    }
  }

  /// What a step of kStep values of k takes from shared memory. Of B two fragments each: {0, 1} for eight columns, {2, 3} for the next.
  struct Part {
    uint32_t a[kFragmentRows][4], b[kFragmentCols / 2][4];
  };

  template <bool kOuterA, bool kOuterB>
  static RLHF_DEVICE void read(Part& part, const TileA& a, const TileB& b, int step) {
    const int k = step * kStep;
#pragma unroll
    for (int row = 0; row < kFragmentRows; ++row) readA<kOuterA>(part.a[row], a, firstRow() + 16 * row, k);
#pragma unroll
    for (int pair = 0; pair < kFragmentCols / 2; ++pair) readB<kOuterB>(part.b[pair], b, firstCol() + 16 * pair, k);
  }

  RLHF_DEVICE void multiply(const Part& part) {
#pragma unroll
    for (int pair = 0; pair < kFragmentCols / 2; ++pair) {
      const uint32_t(&b)[4] = part.b[pair];
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int row = 0; row < kFragmentRows; ++row) {
        mmaM16N8K16<T>(fragment[row][2 * pair], part.a[row], left);
        mmaM16N8K16<T>(fragment[row][2 * pair + 1], part.a[row], right);
      }
    }
  }

 private:
  // Which element each lane addresses, so that ldmatrix leaves mma's fragments in the registers.
  template <bool kOuter>
  static RLHF_DEVICE void readA(uint32_t (&part)[4], const TileA& tile, int row, int k) {
    const int l = lane();
    if constexpr (kOuter) {
      ldmatrixX4Transposed(part, tile.template at<true>(row + 8 * (l / 8 % 2), k + l % 8 + 8 * (l / 16)));
    } else {
      ldmatrixX4(part, tile.template at<false>(row + l % 16, k + 8 * (l / 16)));
    }
  }

  template <bool kOuter>
  static RLHF_DEVICE void readB(uint32_t (&part)[4], const TileB& tile, int col, int k) {
    const int l = lane();
    if constexpr (kOuter) {
      ldmatrixX4Transposed(part, tile.template at<true>(col + 8 * (l / 16), k + l % 16));
    } else {
      ldmatrixX4(part, tile.template at<false>(col + l % 8 + 8 * (l / 16), k + 8 * (l / 8 % 2)));
    }
  }
};

/// The sum in a slot: one accessor for both layouts.
RLHF_DEVICE float& slotSum(FmaTile& tile, int row, int col) { return tile.sum[row][col]; }
template <class T, class Grid, int kDepth, int kStages>
RLHF_DEVICE float& slotSum(TensorCoreTile<T, Grid, kDepth, kStages>& tile, int row, int col) {
  return tile.fragment[row / 2][col / 2][row % 2 * 2 + col % 2];
}

/// Calls f(rowSlot, colSlot, sum) for every sum that the thread holds, in an order known at compile time.
template <class Tile, class Function>
RLHF_DEVICE void forEachSlot(Tile& tile, Function&& f) {
#pragma unroll
  for (int row = 0; row < Tile::kRowSlots; ++row) {
#pragma unroll
    for (int col = 0; col < Tile::kColSlots; ++col) f(row, col, slotSum(tile, row, col));
  }
}

/// The tile for activations of type T. In 16 bits 128 × 128, of which two blocks have room in the 99 KiB that every device gives.
template <class T>
using TileFor = std::conditional_t<std::is_same_v<T, float>, FmaTile, TensorCoreTile<T, WarpGrid<2, 2, 64, 64>, 32, 3>>;

/// 128 × 256, for products with enough of them for all multiprocessors: the wider a tile, the less is read for a product.
template <class T>
using WideTile = TensorCoreTile<T, WarpGrid<2, 4, 64, 64>, 32, 4>;

/// 64 × 32, for products with an adapter's rank, or a value head's output, as their columns: such wait for what they read.
template <class T>
using ThinTile = TensorCoreTile<T, WarpGrid<4, 1, 16, 32>, 64, 4>;

}  // namespace rlhf::cuda
