#pragma once
#include "cuda/prim/staged_rows.cuh"
#include "cuda/prim/tile.cuh"

namespace rlhf::cuda {

// Two ways for a block of 256 threads to multiply tiles, with one interface. A thread holds kRowSlots × kColSlots sums;
// rowOf and colOf tell which element of the block's tile a slot is. A row of the tile lies with kLanesPerRow neighbouring
// lanes of each of kWarpsPerRow warps. A warp's sums are kStrips strips of neighbouring rows, which stage() puts into shared memory one at
// a time; stripRow and stripCol tell where in the tile they begin. Sums run over k in one order, whatever the number of rows.

/// float32 by fused multiply-add: 64 × 64 tiles, 4 × 4 sums per thread.
struct FmaTile {
  using Element = float;
  static constexpr int kRows = 64, kCols = 64, kDepth = 16, kThreads = 256, kStages = 3;
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

  RLHF_DEVICE void multiply(const TileA& a, bool aSummedOuter, const TileB& b, bool bSummedOuter) {
#pragma unroll
    for (int k = 0; k < kDepth; k += kStep) {
      float aPart[kRowSlots][kStep], bPart[kColSlots][kStep];
#pragma unroll
      for (int slot = 0; slot < kRowSlots; ++slot) read(aPart[slot], a, aSummedOuter, rowOf(slot), k);
#pragma unroll
      for (int slot = 0; slot < kColSlots; ++slot) read(bPart[slot], b, bSummedOuter, colOf(slot), k);
#pragma unroll
      for (int step = 0; step < kStep; ++step) {
#pragma unroll
        for (int row = 0; row < kRowSlots; ++row) {
#pragma unroll
          for (int col = 0; col < kColSlots; ++col) sum[row][col] += aPart[row][step] * bPart[col][step];
        }
      }
    }
  }

 private:
  static constexpr int kStep = 4;  // values of k read at once: 16 bytes

  template <class Tile>
  static RLHF_DEVICE void read(float (&part)[kStep], const Tile& tile, bool summedOuter, int i, int k) {
    if (summedOuter) {
#pragma unroll
      for (int step = 0; step < kStep; ++step) part[step] = tile.data[(k + step) * Tile::kPitchSummedOuter + i];
    } else {
      const auto pack = *reinterpret_cast<const Pack<float, kStep>*>(&tile.data[i * Tile::kPitch + k]);
#pragma unroll
      for (int step = 0; step < kStep; ++step) part[step] = pack.item[step];
    }
  }
};

/// bfloat16 or float16 on tensor cores with float32 sums: 128 × 128 tiles, 2 × 4 warps of 64 × 32 elements each.
template <class T>
struct TensorCoreTile {
  using Element = T;
  static constexpr int kRows = 128, kCols = 128, kDepth = 32, kThreads = 256, kStages = 3;
  static constexpr int kBlocksPerMultiprocessor = 2;  // holds the compiler to 128 registers a thread
  static constexpr int kRowSlots = 8, kColSlots = 8;
  static constexpr int kLanesPerRow = 4, kWarpsPerRow = 4;
  using TileA = SharedTile<T, kRows, kDepth>;
  using TileB = SharedTile<T, kCols, kDepth>;

  static constexpr int kFragmentRows = 4, kFragmentCols = 4;  // of 16 × 8 elements
  float fragment[kFragmentRows][kFragmentCols][4] = {};
  static constexpr int kStrips = kFragmentRows;
  using Staged = StagedRows<16, 8 * kFragmentCols, 8>;

  static RLHF_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static RLHF_DEVICE int warpInRow() { return static_cast<int>(threadIdx.x) / 32 % 4; }
  static RLHF_DEVICE int firstRow() { return static_cast<int>(threadIdx.x) / 128 * 64; }
  static RLHF_DEVICE int firstCol() { return warpInRow() * 32; }
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

  RLHF_DEVICE void multiply(const TileA& a, bool aSummedOuter, const TileB& b, bool bSummedOuter) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t aPart[kFragmentRows][4];
#pragma unroll
      for (int row = 0; row < kFragmentRows; ++row) readA(aPart[row], a, aSummedOuter, firstRow() + 16 * row, k);
#pragma unroll
      for (int pair = 0; pair < kFragmentCols / 2; ++pair) {
        uint32_t bPart[4];  // two fragments of B: {0, 1} for eight columns, {2, 3} for the next eight
        readB(bPart, b, bSummedOuter, firstCol() + 16 * pair, k);
        const uint32_t left[2] = {bPart[0], bPart[1]}, right[2] = {bPart[2], bPart[3]};
#pragma unroll
        for (int row = 0; row < kFragmentRows; ++row) {
          mmaM16N8K16<T>(fragment[row][2 * pair], aPart[row], left);
          mmaM16N8K16<T>(fragment[row][2 * pair + 1], aPart[row], right);
        }
      }
    }
  }

 private:
  // Which element each lane addresses, so that ldmatrix leaves mma's fragments in the registers.
  static RLHF_DEVICE void readA(uint32_t (&part)[4], const TileA& tile, bool summedOuter, int row, int k) {
    const int l = lane();
    if (summedOuter) {
      ldmatrixX4Transposed(part, &tile.data[(k + l % 8 + 8 * (l / 16)) * TileA::kPitchSummedOuter + row + 8 * (l / 8 % 2)]);
    } else {
      ldmatrixX4(part, &tile.data[(row + l % 16) * TileA::kPitch + k + 8 * (l / 16)]);
    }
  }

  static RLHF_DEVICE void readB(uint32_t (&part)[4], const TileB& tile, bool summedOuter, int col, int k) {
    const int l = lane();
    if (summedOuter) {
      ldmatrixX4Transposed(part, &tile.data[(k + l % 16) * TileB::kPitchSummedOuter + col + 8 * (l / 16)]);
    } else {
      ldmatrixX4(part, &tile.data[(col + l % 8 + 8 * (l / 16)) * TileB::kPitch + k + 8 * (l / 8 % 2)]);
    }
  }
};

/// The sum in a slot: one accessor for both layouts.
RLHF_DEVICE float& slotSum(FmaTile& tile, int row, int col) { return tile.sum[row][col]; }
template <class T>
RLHF_DEVICE float& slotSum(TensorCoreTile<T>& tile, int row, int col) {
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

/// The tile for activations of type T.
template <class T>
using TileFor = std::conditional_t<std::is_same_v<T, float>, FmaTile, TensorCoreTile<T>>;

}  // namespace rlhf::cuda
