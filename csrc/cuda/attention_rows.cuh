#pragma once
// Where attention's rows are: the packed batch's sequences with their parents, what a query sees, and tiles of rows on
// their way to shared memory.

#include <initializer_list>

#include "cuda/attention_tile.cuh"
#include "cuda/prim/launch.cuh"

namespace rlhf::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

RLHF_DEVICE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

/// One of q, k, v, o, dO: rows of `heads` heads, each `dim` wide.
template <class T>
struct HeadRows {
  const T* data;
  int64_t stride;
};

/// What every kernel of attention is given.
struct AttentionShape {
  const int32_t* offsets;
  const int32_t* parents;  // or null
  int64_t sequences, heads, kvHeads, dim, window;
  float scale;
  bool isAligned;  // every head of every row begins at a multiple of 16 bytes

  RLHF_DEVICE int64_t kvHeadOf(int64_t head) const { return head * kvHeads / heads; }
  RLHF_DEVICE int64_t firstSeen(int64_t query) const { return window > 0 && query >= window ? query - window + 1 : 0; }
};

/// Which keys of one tile the queries of another see, both by index in their tile. In 32 bits, as the rows of a batch are.
struct TileMask {
  int shift, window;

  RLHF_DEVICE TileMask(const AttentionShape& shape, int64_t firstQuery, int64_t firstKey)
      : shift(static_cast<int>(firstQuery - firstKey)),
        window(shape.window > 0 && shape.window < INT32_MAX ? static_cast<int>(shape.window) : INT32_MAX) {}

  RLHF_DEVICE bool sees(int query, int key) const {
    const int distance = shift + query - key;
    return distance >= 0 && distance < window;
  }
};

/// A sequence: rows of its own, and before them, by position, those of its parent.
struct SequenceRows {
  int64_t begin, length, parentBegin = 0, inherited = 0;

  RLHF_DEVICE SequenceRows(const AttentionShape& shape, int64_t sequence) {
    begin = shape.offsets[sequence];
    length = shape.offsets[sequence + 1] - begin;
    const int32_t parent = shape.parents ? shape.parents[sequence] : -1;
    if (parent < 0) return;
    parentBegin = shape.offsets[parent];
    inherited = shape.offsets[parent + 1] - parentBegin;
  }

  RLHF_DEVICE int64_t positions() const { return inherited + length; }
  RLHF_DEVICE int64_t rowAt(int64_t position) const {
    return position < inherited ? parentBegin + position : begin + position - inherited;
  }
};

/// Fills a tile: its row r is row sourceRow(r) of the array at one head, or zero where that is negative. Aligned rows go by
/// cp.async, which the caller commits and waits for; a barrier must follow in either case.
template <class Attention, class T, class SourceRow>
RLHF_DEVICE void loadHeadRows(typename Attention::Tile& tile, const HeadRows<T>& array, const AttentionShape& shape,
                              int64_t head, SourceRow&& sourceRow) {
  constexpr int kPack = kWidestPack<T>, kDim = Attention::kPitch - kPack, kPacksPerRow = kDim / kPack;
  static_assert(Attention::kRows == Attention::kCols, "tiles of rows and of columns are of one size");
#pragma unroll 1  // addresses of several packs at once would take the registers of the sums
  for (int pack = static_cast<int>(threadIdx.x); pack < Attention::kRows * kPacksPerRow; pack += Attention::kThreads) {
    const int row = pack / kPacksPerRow, dim = pack % kPacksPerRow * kPack;
    const int64_t sourceAt = sourceRow(row), left = sourceAt < 0 ? 0 : shape.dim - dim;
    const int valid = left <= 0 ? 0 : left < kPack ? static_cast<int>(left) : kPack;
    const T* source = valid > 0 ? array.data + sourceAt * array.stride + head * shape.dim + dim : array.data;
    T* destination = &tile.data[row * Attention::kPitch + dim];
    if (shape.isAligned) {
      cpAsync16(destination, source, valid * static_cast<int>(sizeof(T)));
    } else {
#pragma unroll
      for (int i = 0; i < kPack; ++i) destination[i] = i < valid ? source[i] : fromFloat<T>(0.0f);
    }
  }
}

/// Writes sums times `factor(rowSlot)` to the rows that targetRow(row) names, at one head; negative ones are left out.
template <class Attention, class T, class TargetRow, class Factor>
RLHF_DEVICE void storeHeadRows(typename Attention::Sums& sums, T* data, int64_t stride, const AttentionShape& shape,
                               int64_t head, TargetRow&& targetRow, Factor&& factor) {
#pragma unroll
  for (int row = 0; row < Attention::kRowSlots; ++row) {
    const int64_t target = targetRow(Attention::rowOf(row));
    if (target < 0) continue;
    const float scale = factor(row);
    T* out = data + target * stride + head * shape.dim;
#pragma unroll
    for (int dim = 0; dim < Attention::kDimSlots; ++dim)
      if (Attention::dimOf(dim) < shape.dim) out[Attention::dimOf(dim)] = fromFloat<T>(Attention::sum(sums, row, dim) * scale);
  }
}

template <class Arguments>
AttentionShape shapeOf(const Arguments& a, size_t elementBytes, std::initializer_list<const void*> arrays) {
  bool isAligned = true;
  for (const void* array : arrays) isAligned &= reinterpret_cast<uintptr_t>(array) % 16 == 0;
  const int64_t strides[] = {a.qStride, a.kStride, a.vStride, a.oStride, a.headDim};
  for (const int64_t stride : strides)
    isAligned &= static_cast<size_t>(stride) * elementBytes % 16 == 0;
  return {a.offsets, a.parents, a.sequences, a.heads, a.kvHeads, a.headDim, a.window, static_cast<float>(a.scale), isAligned};
}

/// Calls f(width) with the smallest width, a constant, that a head fits in.
template <class Function>
void dispatchWidth(int64_t headDim, const char* op, Function&& f) {
  if (headDim <= 16) return f(std::integral_constant<int, 16>());
  if (headDim <= 32) return f(std::integral_constant<int, 32>());
  if (headDim <= 64) return f(std::integral_constant<int, 64>());
  if (headDim <= 128) return f(std::integral_constant<int, 128>());
  throw Error(code::kUnsupported, format("%s: headDim is %lld, the CUDA backend supports at most 128", op,
                                         static_cast<long long>(headDim)));
}

/// Tiles of a sequence as long as the longest; shorter ones leave the last of theirs idle.
inline int64_t tilesPerSequence(int64_t maxLength, int tileRows) { return (maxLength + tileRows - 1) / tileRows; }

}  // namespace rlhf::cuda
