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

/// Rows of kCols elements in shared memory without padding. Eight packs of 16 bytes are as wide as all banks: a pack's place within eight
/// is permuted by the row, so that those which one instruction reads, of a column in eight rows, lie in different banks, and so that
/// what eight neighbouring threads write does too.
template <class T, int kCols>
struct SwizzledRows {
  static constexpr int kPack = kWidestPack<T>, kPacks = kCols / kPack, kPeriod = 8;  // of the permutation, in rows
  static_assert(kPacks == 4 || kPacks % 8 == 0);

  static RLHF_DEVICE int permutation(int row) {
    if constexpr (kPacks == 4) return row / 2 % 4;
    return sizeof(T) == 4 ? 0 : row % 8;  // long rows of float32 are only read along
  }
  static RLHF_DEVICE int at(int row, int col) { return row * kCols + (col / kPack ^ permutation(row)) * kPack + col % kPack; }
};

/// A tile of kExtent values of i by kDepth values of k in shared memory, in the operand's own order: kOuter if its rows are of i.
template <class T, int kExtent_, int kDepth_>
struct SharedTile {
  static constexpr int kExtent = kExtent_, kDepth = kDepth_;
  alignas(128) T data[kExtent * kDepth];

  /// Where element (i, k) is.
  template <bool kOuter>
  RLHF_DEVICE const T* at(int i, int k) const {
    return data + (kOuter ? SwizzledRows<T, kExtent>::at(k, i) : SwizzledRows<T, kDepth>::at(i, k));
  }
};

/// Copies operands' tiles, one after the other along k, into shared memory: those of a block of kThreads threads, from row or column firstI
/// on. What lies past an operand's limits becomes zero. Aligned rows go by cp.async, which the caller commits and waits for, others through
/// registers; a barrier must follow in either case. A thread copies one column of packs.
template <class T, int kExtent, int kDepth, int kThreads>
class TileCopier {
 public:
  using Tile = SharedTile<T, kExtent, kDepth>;

  /// Starts the copies of the operand's next tile; where all of an operand has been copied, those of another's first. An operand has limitI
  /// rows or columns and `depth` values of k.
  template <bool kOuter>
  RLHF_DEVICE void copy(Tile& tile, const Operand& operand, int firstI, int limitI, int depth) {
    using W = Way<kOuter>;
    if (depthLeft_ < wholeDepth_) {  // seldom
      if (depthLeft_ <= 0) begin<W>(operand, kOuter ? 0 : firstI, kOuter ? firstI : 0, limitI - firstI, depth);
      if (depthLeft_ < wholeDepth_) {
        const int firstK = depth - depthLeft_;
        if constexpr (kOuter) {
          copyPart<W>(tile.data + place_, operand, firstK, depth, firstI, limitI);
        } else {
          copyPart<W>(tile.data + place_, operand, firstI, limitI, firstK, depth);
        }
        depthLeft_ -= kDepth;
        return;
      }
    }
#pragma unroll
    for (int row = 0; row < W::kRows; row += W::kRowsAtOnce)
      cpAsync16(tile.data + place_ + row * W::kCols, source_ + static_cast<int64_t>(row) * stride_, 16);
    source_ += kOuter ? static_cast<int64_t>(kDepth) * stride_ : kDepth;
    depthLeft_ -= kDepth;
  }

 private:
  /// How threads share a tile whose rows are of k, or of i.
  template <bool kOuter>
  struct Way {
    static constexpr int kRows = kOuter ? kDepth : kExtent, kCols = kOuter ? kExtent : kDepth;
    using Rows = SwizzledRows<T, kCols>;
    static constexpr int kRowsAtOnce = kThreads / Rows::kPacks;
    static_assert(kThreads % Rows::kPacks == 0 && kRows % kRowsAtOnce == 0, "every thread copies as much");
    static_assert(kRowsAtOnce % Rows::kPeriod == 0, "a thread's packs are permuted alike");
    static RLHF_DEVICE int row() { return static_cast<int>(threadIdx.x) / Rows::kPacks; }
    static RLHF_DEVICE int col() { return static_cast<int>(threadIdx.x) % Rows::kPacks * Rows::kPack; }
  };

  template <class W>
  RLHF_DEVICE void begin(const Operand& operand, int firstRow, int firstCol, int extentLeft, int depth) {
    source_ = static_cast<const T*>(operand.data) + static_cast<int64_t>(firstRow + W::row()) * operand.stride + firstCol + W::col();
    place_ = W::Rows::at(W::row(), W::col());
    stride_ = operand.stride;
    depthLeft_ = depth;
    wholeDepth_ = operand.isAligned && extentLeft >= kExtent ? kDepth : INT32_MAX;
  }

  template <class W>
  static RLHF_DEVICE void copyPart(T* destination, const Operand& operand, int firstRow, int rowLimit, int firstCol, int colLimit) {
    constexpr int kPack = W::Rows::kPack;
    const T* data = static_cast<const T*>(operand.data);
    const int left = colLimit - firstCol - W::col(), inRow = left < 0 ? 0 : left < kPack ? left : kPack;
#pragma unroll 1
    for (int row = 0; row < W::kRows; row += W::kRowsAtOnce) {
      const int at = firstRow + W::row() + row, valid = at < rowLimit ? inRow : 0;
      const T* source = data;
      if (valid > 0) source += static_cast<int64_t>(at) * operand.stride + firstCol + W::col();
      if (operand.isAligned) {
        cpAsync16(destination + row * W::kCols, source, valid * static_cast<int>(sizeof(T)));
      } else {
#pragma unroll
        for (int j = 0; j < kPack; ++j) destination[row * W::kCols + j] = j < valid ? source[j] : fromFloat<T>(0.0f);
      }
    }
  }

  const T* source_ = nullptr;        // of the thread's first pack in the next tile that is copied as it lies
  int place_ = 0;                    // of that pack in shared memory
  int stride_ = 0, depthLeft_ = 0;
  int wholeDepth_ = 1;  // so much of k is left at least where a tile can be copied as it lies
};

}  // namespace rlhf::cuda
