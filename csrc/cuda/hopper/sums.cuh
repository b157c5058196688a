#pragma once
#include "cuda/prim/staged_rows.cuh"

namespace rlhf::cuda {

/// The sums of a Hopper block's 128 × kColumns tile as a thread of its consuming warps has them, with the interface of
/// cuda/prim/accumulator.cuh. A warp has 16 rows, each with four neighbouring lanes.
template <int kColumns>
struct HopperSums {
  using Element = bf16;
  static constexpr int kRows = 128, kCols = kColumns;
  static constexpr int kFirstWarp = 4;  // behind the warpgroup that copies
  static constexpr int kRowSlots = 2, kColSlots = kColumns / 4;
  static constexpr int kLanesPerRow = 4, kWarpsPerRow = 1;
  static constexpr int kStrips = 1;
  using Staged = StagedRows<16, kColumns, 8>;

  float sum[kRowSlots * kColSlots] = {};

  static RLHF_DEVICE int warp() { return static_cast<int>(threadIdx.x) / 32 - kFirstWarp; }
  static RLHF_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static RLHF_DEVICE int rowOf(int slot) { return 16 * warp() + 8 * slot + lane() / 4; }
  static RLHF_DEVICE int colOf(int slot) { return slot / 2 * 8 + lane() % 4 * 2 + slot % 2; }
  static RLHF_DEVICE int stripRow(int) { return 16 * warp(); }
  static RLHF_DEVICE int stripCol() { return 0; }

  RLHF_DEVICE void stage(Staged& staged, int) const {
    const int group = lane() / 4, pair = lane() % 4;
#pragma unroll
    for (int i = 0; i < kRowSlots * kColSlots; i += 2)
      *reinterpret_cast<Pack<float, 2>*>(&staged.row[group + i / 2 % 2 * 8][i / 4 * 8 + 2 * pair]) = {sum[i], sum[i + 1]};
  }
};

template <int kColumns>
RLHF_DEVICE float& slotSum(HopperSums<kColumns>& sums, int row, int col) {
  return sums.sum[col / 2 * 4 + row * 2 + col % 2];
}

}  // namespace rlhf::cuda
