#pragma once
#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// Whether an epilogue adds to what is stored already, and says what that is: readPack(row, col), handed to storePack beside the sums.
template <class Epilogue>
concept AddsToStored = requires(const Epilogue& epilogue, int64_t at) { epilogue.readPack(at, at); };

/// Sums of a warp in shared memory on their way to an epilogue, which takes them by rows. The padding is what keeps the lanes that write
/// at once in different banks.
template <int kRows_, int kCols_, int kPadding>
struct StagedRows {
  static constexpr int kRows = kRows_, kCols = kCols_;
  alignas(16) float row[kRows][kCols + kPadding];

  /// Hands the rows to epilogue.storePack(row, col, sums), neighbouring lanes neighbouring columns of D: four at once where `packs` says
  /// that the epilogue's arrays take them, else one by one. The first row and column are those of D.
  template <class Epilogue>
  RLHF_DEVICE void store(const Epilogue& epilogue, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols, bool packs) const {
    constexpr int kPacks = kCols / 4;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int rowsLeft = static_cast<int>(rows - firstRow < kRows ? rows - firstRow : kRows);
    const int colsLeft = static_cast<int>(cols - firstCol < kCols ? cols - firstCol : kCols);
    if constexpr (AddsToStored<Epilogue>) {
      if (packs) return addPacks(epilogue, firstRow, firstCol, rowsLeft, colsLeft);
    }
#pragma unroll 1
    for (int pack = lane; pack < kRows * kPacks; pack += 32) {
      const int r = pack / kPacks, c = pack % kPacks * 4;
      if (r >= rowsLeft || c >= colsLeft) continue;
      const auto sums = *reinterpret_cast<const Pack<float, 4>*>(&row[r][c]);
      if (packs) {
        epilogue.storePack(firstRow + r, firstCol + c, sums);
      } else {
#pragma unroll 1
        for (int i = 0; i < 4 && c + i < colsLeft; ++i) epilogue.storePack(firstRow + r, firstCol + c + i, Pack<float, 1>{row[r][c + i]});
      }
    }
  }

 private:
  /// The packs of an epilogue that adds to what is stored. Global memory answers after hundreds of cycles, so several packs are asked for
  /// before the first is needed; the compiler may not move a read before another pack's write.
  template <class Epilogue>
  RLHF_DEVICE void addPacks(const Epilogue& epilogue, int64_t firstRow, int64_t firstCol, int rowsLeft, int colsLeft) const {
    constexpr int kPacks = kCols / 4, kOfLane = kRows * kPacks / 32, kAtOnce = kOfLane < 4 ? kOfLane : 4;
    static_assert(kRows * kPacks % (32 * kAtOnce) == 0);
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int first = lane; first < kRows * kPacks; first += 32 * kAtOnce) {
      decltype(epilogue.readPack(firstRow, firstCol)) stored[kAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int r = (first + 32 * i) / kPacks, c = (first + 32 * i) % kPacks * 4;
        if (r < rowsLeft && c < colsLeft) stored[i] = epilogue.readPack(firstRow + r, firstCol + c);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int r = (first + 32 * i) / kPacks, c = (first + 32 * i) % kPacks * 4;
        if (r < rowsLeft && c < colsLeft)
          epilogue.storePack(firstRow + r, firstCol + c, *reinterpret_cast<const Pack<float, 4>*>(&row[r][c]), stored[i]);
      }
    }
  }
};

}  // namespace rlhf::cuda
