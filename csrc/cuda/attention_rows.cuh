#pragma once
// Where attention's rows are: the packed batch's sequences with their parents, what a query sees, and tiles of rows on
// their way to shared memory.

#include <initializer_list>

#include "cuda/attention_tile.cuh"
#include "cuda/prim/launch.cuh"

namespace rlhf::cuda {

RLHF_DEVICE int lesser(int a, int b) { return a < b ? a : b; }

/// One of q, k, v, o, dO: rows of `heads` heads, each `dim` wide.
template <class T>
struct HeadRows {
  const T* data;
  int stride;

  HeadRows(const void* array, int64_t rowStride) : data(static_cast<const T*>(array)), stride(static_cast<int>(rowStride)) {}
};

/// What every kernel of attention is given. Rows and positions are of 32 bits, as the offsets are.
struct AttentionShape {
  const int32_t* offsets;
  const int32_t* parents;  // or null
  int sequences, heads, kvHeads, dim;
  int window;  // INT32_MAX: all that is before
  float scale;
  bool isAligned;  // every head of every row begins at a multiple of 16 bytes

  RLHF_DEVICE int kvHeadOf(int head) const { return head * kvHeads / heads; }
  /// The first sequence behind another that has this parent, or `sequences`.
  RLHF_DEVICE int nextChild(int parent, int sequence) const {
    if (!parents) return sequences;
    do ++sequence;
    while (sequence < sequences && parents[sequence] != parent);
    return sequence;
  }
  RLHF_DEVICE int firstSeen(int query) const { return query >= window ? query - window + 1 : 0; }
};

/// Which keys of one tile the queries of another see, both by index in their tile.
struct TileMask {
  int shift, window;

  RLHF_DEVICE TileMask(const AttentionShape& shape, int firstQuery, int firstKey)
      : shift(firstQuery - firstKey), window(shape.window) {}

  RLHF_DEVICE bool sees(int query, int key) const {
    const int distance = shift + query - key;
    return distance >= 0 && distance < window;
  }
  /// Whether a key and all behind it are hidden from a query and all before it.
  RLHF_DEVICE bool hidesAll(int query, int key) const { return shift + query < key; }
  /// Whether the queries from one to another see all keys before `keys`.
  RLHF_DEVICE bool seesAll(int firstQuery, int lastQuery, int keys) const { return sees(firstQuery, keys - 1) && sees(lastQuery, 0); }
};

/// A sequence: rows of its own, and before them, by position, those of its parent.
struct SequenceRows {
  int begin, length, parentBegin = 0, inherited = 0;

  RLHF_DEVICE SequenceRows(const AttentionShape& shape, int sequence) {
    begin = shape.offsets[sequence];
    length = shape.offsets[sequence + 1] - begin;
    const int32_t parent = shape.parents ? shape.parents[sequence] : -1;
    if (parent < 0) return;
    parentBegin = shape.offsets[parent];
    inherited = shape.offsets[parent + 1] - parentBegin;
  }

  RLHF_DEVICE int positions() const { return inherited + length; }
  /// The row of the batch that is at a position; behind the last one, those that follow in the batch.
  RLHF_DEVICE int batchRow(int position) const { return position + (position < inherited ? parentBegin : begin - inherited); }
  /// The row of the batch that is at a position, or −1 behind the last.
  RLHF_DEVICE int rowAt(int position) const { return position >= positions() ? -1 : batchRow(position); }
  /// The row of the batch that is a row of the sequence's own, or −1 behind the last.
  RLHF_DEVICE int ownRow(int row) const { return row < length ? begin + row : -1; }
};

/// A sequence's own queries that see any of a tile's keys, from one row on in tiles of so many.
struct QueriesOfKeys {
  int firstRow, tiles;

  RLHF_DEVICE QueriesOfKeys(const AttentionShape& shape, const SequenceRows& sequence, int firstKey, int keys, int tileRows) {
    firstRow = firstKey > sequence.inherited ? firstKey - sequence.inherited : 0;
    const int lastKey = firstKey + keys - 1, past = sequence.positions() - lastKey;
    const int endRow = past > shape.window ? lastKey + shape.window - sequence.inherited : sequence.length;
    tiles = endRow > firstRow ? (endRow - firstRow + tileRows - 1) / tileRows : 0;
  }
};

/// Which tile of which sequence and head a block has, where every sequence has as many tiles. Blocks start in the order of x, y and z: all
/// sequences' and heads' first tiles before any second one. Those with the most work come first, so that no multiprocessor is left with
/// one at the end.
struct BlockPlace {
  int head = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.y), tile = static_cast<int>(blockIdx.z);
};

/// A block's tile of queries of one sequence at one head, and the tiles of keys that any of them sees.
template <class Attention>
struct QueryTile {
  SequenceRows sequence;
  int firstRow, firstQuery, count, firstTile;

  /// The calling block's tile, of which a sequence's last ones see the most keys. A count of 0 or less: the sequence has no such tile.
  explicit RLHF_DEVICE QueryTile(const AttentionShape& shape) : sequence(shape, BlockPlace().sequence) {
    firstRow = (static_cast<int>(gridDim.z) - 1 - BlockPlace().tile) * Attention::kRows;
    firstQuery = sequence.inherited + firstRow;
    count = lesser(Attention::kRows, sequence.length - firstRow);
    firstTile = shape.firstSeen(firstQuery) / Attention::kCols;
  }

  RLHF_DEVICE int rowAt(int row) const { return sequence.ownRow(firstRow + row); }
  RLHF_DEVICE int keyTiles() const { return keyTilesOf(Attention::kRows); }
  /// Those that the first `rows` queries see any of.
  RLHF_DEVICE int keyTilesOf(int rows) const { return (firstQuery + lesser(count, rows) - 1) / Attention::kCols - firstTile + 1; }
  RLHF_DEVICE int firstKey(int tile) const { return (firstTile + tile) * Attention::kCols; }
  RLHF_DEVICE int keyRow(int tile, int row) const { return sequence.rowAt(firstKey(tile) + row); }
  RLHF_DEVICE TileMask maskOf(const AttentionShape& shape, int tile) const { return {shape, firstQuery, firstKey(tile)}; }

  /// Whether the calling warp has queries that see keys of a tile.
  RLHF_DEVICE bool takesPart(const AttentionShape& shape, int tile) const {
    return Attention::warpFirstRow() < count && !maskOf(shape, tile).hidesAll(Attention::warpLastRow(), 0);
  }
  /// Scores of keys that a query does not see become −∞.
  RLHF_DEVICE void hide(typename Attention::Scores& scores, const AttentionShape& shape, int tile) const {
    const TileMask mask = maskOf(shape, tile);
    if (mask.seesAll(Attention::warpFirstRow(), Attention::warpLastRow(), Attention::kCols)) return;
    forEachScore<Attention>(scores, [&](int row, int col, float& score) {
      if (!mask.sees(Attention::rowOf(row), Attention::colOf(col))) score = -INFINITY;
    });
  }
};

/// Fills a tile: its row r is row sourceRow(r) of the array at one head, or zero where that is negative. Aligned rows go by
/// cp.async, which the caller commits and waits for; a barrier must follow in either case. A thread copies one column of packs.
template <class Attention, class Tile, class T, class SourceRow>
RLHF_DEVICE void loadHeadRows(Tile& tile, const HeadRows<T>& array, const AttentionShape& shape, int head,
                              SourceRow&& sourceRow) {
  constexpr int kPack = kWidestPack<T>, kPacksPerRow = Attention::kDim / kPack, kRowsAtOnce = Attention::kThreads / kPacksPerRow;
  static_assert(Tile::kRows % kRowsAtOnce == 0, "every thread copies as much");
  const int thread = static_cast<int>(threadIdx.x), threadRow = thread / kPacksPerRow, firstDim = thread % kPacksPerRow * kPack;
  const int inHead = shape.dim <= firstDim ? 0 : lesser(shape.dim - firstDim, kPack);
  const T* column = inHead > 0 ? array.data + head * shape.dim + firstDim : array.data;
  T* destination = &tile.data[threadRow * Attention::kPitch + firstDim];
  if (shape.isAligned) {
#pragma unroll
    for (int row = 0; row < Tile::kRows; row += kRowsAtOnce) {
      const int at = sourceRow(row + threadRow);
      const T* source = column + static_cast<int64_t>(at < 0 ? 0 : at) * array.stride;
      cpAsync16(destination + row * Attention::kPitch, source, at < 0 ? 0 : inHead * static_cast<int>(sizeof(T)));
    }
  } else {
#pragma unroll 1
    for (int row = 0; row < Tile::kRows; row += kRowsAtOnce) {
      const int at = sourceRow(row + threadRow);
#pragma unroll 1
      for (int i = 0; i < kPack; ++i)
        destination[row * Attention::kPitch + i] =
            at >= 0 && i < inHead ? column[static_cast<int64_t>(at) * array.stride + i] : fromFloat<T>(0.0f);
    }
  }
}

/// Writes sums times `factor(rowSlot)` to the rows that targetRow(row) names, at one head; negative ones are left out.
template <class Attention, class T, class TargetRow, class Factor>
RLHF_DEVICE void storeHeadRows(typename Attention::Sums& sums, T* data, int64_t stride, const AttentionShape& shape,
                               int head, TargetRow&& targetRow, Factor&& factor) {
#pragma unroll
  for (int row = 0; row < Attention::kRowSlots; ++row) {
    const int target = targetRow(Attention::rowOf(row));
    if (target < 0) continue;
    const float scale = factor(row);
    T* out = data + target * stride + static_cast<int64_t>(head) * shape.dim;
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
  for (const int64_t stride : strides) {
    if (stride > INT32_MAX) throw Error(code::kUnsupported, "attention: rows are more than 2^31 elements apart");
    isAligned &= static_cast<size_t>(stride) * elementBytes % 16 == 0;
  }
  const auto narrow = [](int64_t value) { return static_cast<int>(value < INT32_MAX ? value : INT32_MAX); };
  return {a.offsets,         a.parents,         narrow(a.sequences), narrow(a.heads),
          narrow(a.kvHeads), narrow(a.headDim), a.window > 0 ? narrow(a.window) : INT32_MAX, static_cast<float>(a.scale), isAligned};
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

/// A block for each BlockPlace.
template <class Attention, class Arguments>
dim3 gridOf(const Arguments& a, int64_t heads) {
  constexpr int64_t kMost = 65535;
  const int64_t tiles = (a.maxLength + Attention::kRows - 1) / Attention::kRows;  // shorter sequences leave the last of theirs idle
  if (a.sequences > kMost || tiles > kMost) throw Error(code::kUnsupported, "attention: more than 65535 sequences, or tiles of one");
  return dim3(static_cast<uint32_t>(heads), static_cast<uint32_t>(a.sequences), static_cast<uint32_t>(tiles));
}

}  // namespace rlhf::cuda
