#pragma once
#include <type_traits>

#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// One factor of a matrix product, element (i, k) with k the index that is summed over. Either rows of k (row i at
/// data + i·stride) or, `summedOuter`, rows of i (row k at data + k·stride). With `sources`, row r is row
/// sources[r] of the array: the hidden state that a token is predicted from.
struct Operand {
  const void* data = nullptr;
  int64_t stride = 0;
  bool summedOuter = false;
  bool isAligned = false;  // every row starts at a multiple of 16 bytes
  const int32_t* sources = nullptr;
};

template <class T>
Operand makeOperand(const void* data, int64_t stride, bool summedOuter, const int32_t* sources = nullptr) {
  const bool isAligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * sizeof(T) % 16 == 0;
  return {data, stride, summedOuter, isAligned, sources};
}

/// A tile of kExtent values of i by kDepth values of k in shared memory, in the operand's own order. Rows are padded by 16
/// bytes: their pitch is then an odd multiple of 16 bytes, and eight rows at one column lie in different banks.
template <class T, int kExtent, int kDepth>
struct SharedTile {
  static constexpr int kPitch = kDepth + kWidestPack<T>;              // rows of k
  static constexpr int kPitchSummedOuter = kExtent + kWidestPack<T>;  // rows of i
  static constexpr int kByRows = kExtent * kPitch;
  static constexpr int kBySummed = kDepth * kPitchSummedOuter;
  alignas(128) T data[kByRows > kBySummed ? kByRows : kBySummed];
};

/// Fills kRows rows of kCols elements from row `firstRow`, column `firstCol` of the operand's array; what lies past the
/// limits becomes zero. Aligned rows go by cp.async, which the caller commits and waits for, others through registers; a
/// barrier must follow in either case.
template <int kRows, int kCols, int kPitch, int kThreads, class T>
RLHF_DEVICE void loadRows(T* tile, const Operand& operand, int64_t firstRow, int64_t rowLimit, int64_t firstCol,
                          int64_t colLimit) {
  constexpr int kPack = kWidestPack<T>;
  constexpr int kPacksPerRow = kCols / kPack;
  static_assert(kRows * kPacksPerRow % kThreads == 0, "every thread copies as much");
  const T* data = static_cast<const T*>(operand.data);
#pragma unroll
  for (int i = 0; i < kRows * kPacksPerRow / kThreads; ++i) {
    const int pack = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = pack / kPacksPerRow, col = pack % kPacksPerRow * kPack;
    const int64_t left = firstRow + row < rowLimit ? colLimit - firstCol - col : 0;
    const int valid = left <= 0 ? 0 : left < kPack ? static_cast<int>(left) : kPack;
    const T* source = data;
    if (valid > 0) {
      const int64_t sourceRow = operand.sources ? operand.sources[firstRow + row] : firstRow + row;
      source += sourceRow * operand.stride + firstCol + col;
    }
    T* destination = tile + row * kPitch + col;
    if (operand.isAligned) {
      cpAsync16(destination, source, valid * static_cast<int>(sizeof(T)));
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) destination[j] = j < valid ? source[j] : fromFloat<T>(0.0f);
    }
  }
}

/// Fills a tile with elements (firstI + …, firstK + …) of the operand.
template <int kThreads, class T, int kExtent, int kDepth>
RLHF_DEVICE void loadTile(SharedTile<T, kExtent, kDepth>& tile, const Operand& operand, int64_t firstI, int64_t limitI,
                          int64_t firstK, int64_t limitK) {
  using Tile = SharedTile<T, kExtent, kDepth>;
  if (operand.summedOuter) {
    loadRows<kDepth, kExtent, Tile::kPitchSummedOuter, kThreads>(tile.data, operand, firstK, limitK, firstI, limitI);
  } else {
    loadRows<kExtent, kDepth, Tile::kPitch, kThreads>(tile.data, operand, firstI, limitI, firstK, limitK);
  }
}

}  // namespace rlhf::cuda
