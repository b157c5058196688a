#pragma once
// The products of attention for a block of 128 threads: scores S = A·Bᵀ of a tile of rows against a tile of columns, both
// [row][dim] in shared memory, stay in registers, become weights there, and are summed up as Σ weights·B. Two
// implementations with one interface; kDim is the width of a head, rounded up and filled with zeros.

#include "cuda/prim/accumulator.cuh"

namespace rlhf::cuda {

/// float32 by fused multiply-add, tiles of 32 rows. Weights pass through shared memory on their way to the second product, from lanes to
/// lanes of one warp; a barrier must stand between accumulate() and the next publish().
template <int kDim_>
struct FmaAttention {
  using Element = float;
  static constexpr int kDim = kDim_, kRows = 32, kCols = 32, kThreads = 128, kLanesPerRow = 16;
  static constexpr int kRowSlots = 4, kColSlots = 2, kDimSlots = kDim / 16;
  static constexpr int kPitch = kDim + kWidestPack<float>;

  template <int kTileRows>
  struct Tile {
    static constexpr int kRows = kTileRows;
    alignas(16) float data[kRows * kPitch];
  };
  using RowTile = Tile<kRows>;
  using ColTile = Tile<kCols>;
  struct Exchange {
    static constexpr int kPitch = kCols + kWidestPack<float>;
    alignas(16) float data[kRows * kPitch];
  };
  struct Scores {
    float value[kRowSlots][kColSlots];
  };
  struct Sums {
    float value[kRowSlots][kDimSlots] = {};
  };

  static RLHF_DEVICE int rowOf(int slot) { return static_cast<int>(threadIdx.x) / 16 + 8 * slot; }
  static RLHF_DEVICE int colOf(int slot) { return static_cast<int>(threadIdx.x) % 16 + 16 * slot; }
  static RLHF_DEVICE int dimOf(int slot) { return colOf(slot); }
  // A warp's rows are spread over the tile.
  static RLHF_DEVICE int warpFirstRow() { return 0; }
  static RLHF_DEVICE int warpLastRow() { return kRows - 1; }
  static RLHF_DEVICE float& score(Scores& scores, int row, int col) { return scores.value[row][col]; }
  static RLHF_DEVICE float& sum(Sums& sums, int row, int dim) { return sums.value[row][dim]; }

  static RLHF_DEVICE void multiply(Scores& scores, const RowTile& a, const ColTile& b) {
    scores = {};
#pragma unroll 1
    for (int k = 0; k < kDim; k += kStep) {
      Part aPart[kRowSlots], bPart[kColSlots];
#pragma unroll
      for (int row = 0; row < kRowSlots; ++row) aPart[row] = partAt(&a.data[rowOf(row) * kPitch + k]);
#pragma unroll
      for (int col = 0; col < kColSlots; ++col) bPart[col] = partAt(&b.data[colOf(col) * kPitch + k]);
#pragma unroll
      for (int step = 0; step < kStep; ++step) {
#pragma unroll
        for (int row = 0; row < kRowSlots; ++row) {
#pragma unroll
          for (int col = 0; col < kColSlots; ++col) scores.value[row][col] += aPart[row].item[step] * bPart[col].item[step];
        }
      }
    }
  }

  static RLHF_DEVICE void publish(const Scores& weights, Exchange& exchange) {
#pragma unroll
    for (int row = 0; row < kRowSlots; ++row) {
#pragma unroll
      for (int col = 0; col < kColSlots; ++col)
        exchange.data[rowOf(row) * Exchange::kPitch + colOf(col)] = weights.value[row][col];
    }
  }

  static RLHF_DEVICE void accumulate(Sums& sums, const Scores&, const Exchange& exchange, const ColTile& b) {
    syncWarp();
#pragma unroll 1
    for (int k = 0; k < kCols; k += kStep) {
      Part weight[kRowSlots];
#pragma unroll
      for (int row = 0; row < kRowSlots; ++row) weight[row] = partAt(&exchange.data[rowOf(row) * Exchange::kPitch + k]);
#pragma unroll
      for (int step = 0; step < kStep; ++step) {
#pragma unroll
        for (int dim = 0; dim < kDimSlots; ++dim) {
          const float value = b.data[(k + step) * kPitch + dimOf(dim)];
#pragma unroll
          for (int row = 0; row < kRowSlots; ++row) sums.value[row][dim] += weight[row].item[step] * value;
        }
      }
    }
  }

 private:
  static constexpr int kStep = kWidestPack<float>;
  using Part = Pack<float, kStep>;
  static RLHF_DEVICE Part partAt(const float* data) { return *reinterpret_cast<const Part*>(data); }
};

/// bfloat16 or float16 on tensor cores with float32 sums, kWarpRows rows for each of four warps. What a warp reads of the columns' tile
/// serves all its rows, so many rows spare shared memory, and take registers. The accumulators of the scores, rounded in pairs, are the
/// fragments that the second product takes (FlashAttention 2).
template <class T, int kDim_, int kWarpRows, int kCols_>
struct TensorCoreAttention {
  using Element = T;
  static constexpr int kDim = kDim_, kRows = 4 * kWarpRows, kCols = kCols_, kThreads = 128, kLanesPerRow = 4;
  static constexpr int kBlocks = kWarpRows / 16;  // of 16 rows
  static constexpr int kRowSlots = 2 * kBlocks, kColSlots = kCols / 4, kDimSlots = kDim / 4;
  static constexpr int kPitch = kDim + kWidestPack<T>;

  template <int kTileRows>
  struct Tile {
    static constexpr int kRows = kTileRows;
    alignas(16) T data[kRows * kPitch];
  };
  using RowTile = Tile<kRows>;
  using ColTile = Tile<kCols>;
  struct Exchange {};
  struct Scores {
    float fragment[kBlocks][kCols / 8][4];
  };
  struct Sums {
    float fragment[kBlocks][kDim / 8][4] = {};
  };

  static RLHF_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static RLHF_DEVICE int warpFirstRow() { return static_cast<int>(threadIdx.x) / 32 * kWarpRows; }
  static RLHF_DEVICE int warpLastRow() { return warpFirstRow() + kWarpRows - 1; }
  static RLHF_DEVICE int rowOf(int slot) { return warpFirstRow() + 8 * slot + lane() / 4; }
  static RLHF_DEVICE int colOf(int slot) { return slot / 2 * 8 + lane() % 4 * 2 + slot % 2; }
  static RLHF_DEVICE int dimOf(int slot) { return colOf(slot); }
  static RLHF_DEVICE float& score(Scores& scores, int row, int col) {
    return scores.fragment[row / 2][col / 2][row % 2 * 2 + col % 2];
  }
  static RLHF_DEVICE float& sum(Sums& sums, int row, int dim) { return sums.fragment[row / 2][dim / 2][row % 2 * 2 + dim % 2]; }

  static RLHF_DEVICE void multiply(Scores& scores, const RowTile& a, const ColTile& b) {
    scores = {};
    const int l = lane();
#pragma unroll 2
    for (int k = 0; k < kDim; k += 16) {
      uint32_t aPart[kBlocks][4];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        ldmatrixX4(aPart[block], &a.data[(warpFirstRow() + 16 * block + l % 16) * kPitch + k + 8 * (l / 16)]);
#pragma unroll
      for (int pair = 0; pair < kCols / 16; ++pair) {
        uint32_t bPart[4];
        ldmatrixX4(bPart, &b.data[(16 * pair + l % 8 + 8 * (l / 16)) * kPitch + k + 8 * (l / 8 % 2)]);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
          multiplyPair(scores.fragment[block][2 * pair], scores.fragment[block][2 * pair + 1], aPart[block], bPart);
      }
    }
  }

  static RLHF_DEVICE void publish(const Scores&, Exchange&) {}

  static RLHF_DEVICE void accumulate(Sums& sums, const Scores& weights, const Exchange&, const ColTile& b) {
    const int l = lane();
#pragma unroll
    for (int k = 0; k < kCols; k += 16) {
      uint32_t aPart[kBlocks][4];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float(&fragment)[4] = weights.fragment[block][k / 8 + r / 2];
          aPart[block][r] = packPair<T>(fragment[2 * (r % 2)], fragment[2 * (r % 2) + 1]);
        }
      }
#pragma unroll
      for (int pair = 0; pair < kDim / 16; ++pair) {
        uint32_t bPart[4];
        ldmatrixX4Transposed(bPart, &b.data[(k + l % 16) * kPitch + 16 * pair + 8 * (l / 16)]);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
          multiplyPair(sums.fragment[block][2 * pair], sums.fragment[block][2 * pair + 1], aPart[block], bPart);
      }
    }
  }

 private:
  static RLHF_DEVICE void multiplyPair(float (&first)[4], float (&second)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
    mmaM16N8K16<T>(first, a, left);
    mmaM16N8K16<T>(second, a, right);
  }
};

template <class T, int kDim, int kWarpRows, int kCols>
using AttentionFor =
    std::conditional_t<std::is_same_v<T, float>, FmaAttention<kDim>, TensorCoreAttention<T, kDim, kWarpRows, kCols>>;

/// Calls f(rowSlot, colSlot, score) for every score that the thread holds.
template <class Attention, class Function>
RLHF_DEVICE void forEachScore(typename Attention::Scores& scores, Function&& f) {
#pragma unroll
  for (int row = 0; row < Attention::kRowSlots; ++row) {
#pragma unroll
    for (int col = 0; col < Attention::kColSlots; ++col) f(row, col, Attention::score(scores, row, col));
  }
}

}  // namespace rlhf::cuda
