#pragma once
#include <type_traits>

#include "core/error.h"
#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// One factor of a matrix product, element (i, k) with k the index that is summed over. Either rows of k (row i at
/// data + i·stride) or, `summedOuter`, rows of i (row k at data + k·stride).
struct Operand {
  const void* data = nullptr;
  int stride = 0;
  bool summedOuter = false;
  bool isAligned = false;  // every row starts at a multiple of 16 bytes
};

template <class T>
Operand makeOperand(const void* data, int64_t stride, bool summedOuter) {
  if (stride > INT32_MAX) throw Error(code::kUnsupported, "matrix product: rows are more than 2^31 elements apart");
  const bool isAligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * sizeof(T) % 16 == 0;
  return {data, static_cast<int>(stride), summedOuter, isAligned};
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
/// barrier must follow in either case. A thread copies one column of packs.
template <int kRows, int kCols, int kPitch, int kThreads, class T>
RLHF_DEVICE void loadRows(T* tile, const Operand& operand, int firstRow, int rowLimit, int firstCol, int colLimit) {
  constexpr int kPack = kWidestPack<T>, kPacksPerRow = kCols / kPack, kRowsAtOnce = kThreads / kPacksPerRow;
  static_assert(kThreads % kPacksPerRow == 0 && kRows % kRowsAtOnce == 0, "every thread copies as much");
  const int thread = static_cast<int>(threadIdx.x), threadRow = thread / kPacksPerRow, threadCol = thread % kPacksPerRow * kPack;
  const T* data = static_cast<const T*>(operand.data);
  T* destination = tile + threadRow * kPitch + threadCol;
  const bool isInside = rowLimit - firstRow >= kRows && colLimit - firstCol >= kCols;
  if (isInside && operand.isAligned) {  // as most tiles: an instruction or two for a copy
    const T* source = data + static_cast<int64_t>(firstRow + threadRow) * operand.stride + firstCol + threadCol;
#pragma unroll
    for (int row = 0; row < kRows; row += kRowsAtOnce)
      cpAsync16(destination + row * kPitch, source + static_cast<int64_t>(row) * operand.stride, 16);
    return;
  }
  const int left = colLimit - firstCol - threadCol, inRow = left < 0 ? 0 : left < kPack ? left : kPack;
#pragma unroll 1
  for (int row = 0; row < kRows; row += kRowsAtOnce) {
    const int at = firstRow + threadRow + row, valid = at < rowLimit ? inRow : 0;
    const T* source = data;
    if (valid > 0) source += static_cast<int64_t>(at) * operand.stride + firstCol + threadCol;
    if (operand.isAligned) {
      cpAsync16(destination + row * kPitch, source, valid * static_cast<int>(sizeof(T)));
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) destination[row * kPitch + j] = j < valid ? source[j] : fromFloat<T>(0.0f);
    }
  }
}

/// Fills a tile with elements (firstI + …, firstK + …) of the operand.
template <int kThreads, class T, int kExtent, int kDepth>
RLHF_DEVICE void loadTile(SharedTile<T, kExtent, kDepth>& tile, const Operand& operand, int firstI, int limitI, int firstK,
                          int limitK) {
  using Tile = SharedTile<T, kExtent, kDepth>;
  if (operand.summedOuter) {
    loadRows<kDepth, kExtent, Tile::kPitchSummedOuter, kThreads>(tile.data, operand, firstK, limitK, firstI, limitI);
  } else {
    loadRows<kExtent, kDepth, Tile::kPitch, kThreads>(tile.data, operand, firstI, limitI, firstK, limitK);
  }
}

}  // namespace rlhf::cuda
