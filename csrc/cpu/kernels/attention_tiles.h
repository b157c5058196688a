#pragma once
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/sequences.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/simd.h"

// What attention's forward and backward passes share. Queries and keys are cut into tiles of kTile positions
// of their sequence. Score tiles lie transposed, [keys][queries], queries along vector lanes: softmax then
// needs no horizontal operations, and K, V and their gradients are read and written as they lie in memory.

namespace rlhf::RLHF_ISA {

constexpr int64_t roundUp(int64_t value, int64_t multiple) { return ceilDivide(value, multiple) * multiple; }

/// Floats of a thread's scratch memory, handed out in order.
class ScratchFloats {
 public:
  explicit ScratchFloats(char* memory) : next_(memory), end_(memory + cpu::kScratchPerThread) {}
  float* take(int64_t count) {
    float* block = reinterpret_cast<float*>(next_);
    next_ += roundUp(count * static_cast<int64_t>(sizeof(float)), 64);
    return block;
  }
  /// Floats that are left, as blocks of whole cache lines.
  int64_t left() const { return (end_ - next_) / static_cast<int64_t>(sizeof(float)); }

 private:
  char *next_, *end_;
};

/// A thread's scratch memory holds at most eight [kTile, headDim] tiles and a few [kTile, kTile] ones.
inline constexpr int64_t kMaxHeadDim = 1024;

inline void requireHeadDim(int64_t headDim, const char* op) {
  if (headDim > kMaxHeadDim)
    throw Error(code::kUnsupported,
                format("%s: headDim is %lld, the CPU supports at most %lld", op,
                       static_cast<long long>(headDim), static_cast<long long>(kMaxHeadDim)));
}

/// A tile of a sequence's keys, cut at multiples of kTile positions: rows of the parent, rows of its own, or some of each.
struct KeyTile {
  int64_t position, rows;
  int64_t inherited;  // the first of its rows, which are the parent's
  int64_t parentRow, ownRow;

  KeyTile(const Sequence& sequence, int64_t tile)
      : position(tile * kTile), rows(std::min(kTile, sequence.positions() - position)),
        inherited(std::clamp<int64_t>(sequence.inherited - position, 0, rows)),
        parentRow(sequence.parentBegin + position),
        ownRow(sequence.begin + position + inherited - sequence.inherited) {}

  /// Calls body(first row in the batch, first key of the tile, number of keys) for what lies together.
  template <class Body>
  void forEachRun(Body&& body) const {
    if (inherited > 0) body(parentRow, int64_t{0}, inherited);
    if (inherited < rows) body(ownRow, inherited, rows - inherited);
  }
};

template <class T>
T* rowOf(T* base, int64_t row, int64_t stride, int64_t head, int64_t dim) {
  return base + row * stride + head * dim;
}

/// Which keys of one tile the queries of another see: query q sees key k where q + shift − window < k ≤ q + shift.
struct TileMask {
  int64_t shift;   // position of the first query less that of the first key
  int64_t window;  // 0: none

  bool diagonal() const { return shift == 0; }
  /// The keys before this one are seen by all queries from `query` on.
  int64_t firstHidden(int64_t query) const { return window > 0 ? 0 : std::max<int64_t>(0, query + shift + 1); }
  /// Whether some query does not see some key.
  bool hidesAny(int64_t queries, int64_t keys) const {
    return shift < keys - 1 || (window > 0 && shift + queries > window);
  }
  /// Lanes that hold a pair of which the query does not see the key; queries and keys are counted inside their tiles.
  IntVec hidden(IntVec query, IntVec key) const {
    const IntVec age = query + static_cast<int>(shift) - key;
    return window > 0 ? (age < 0) | (age >= static_cast<int>(std::min<int64_t>(window, INT32_MAX))) : age < 0;
  }
};

/// scores[key][query] = Σ_d keyRows[key][d] · queriesT[d][query]; on the diagonal only the vectors that hold
/// a visible pair.
inline void multiplyKeyRows(const float* keyRows, int64_t keyStride, int64_t keys, int64_t dim,
                            const float* queriesT, int64_t lanes, bool diagonal, float* scores) {
  const int64_t step = diagonal ? kTileRows : keys;
  for (int64_t key = 0; key < keys; key += step) {
    const int64_t firstLane = diagonal ? key / kWidth * kWidth : 0;
    multiply<Contiguous::Depth>(std::min(step, keys - key), lanes - firstLane,
                                {.depth = dim,
                                 .a = keyRows + key * keyStride,
                                 .aStride = keyStride,
                                 .b = queriesT + firstLane,
                                 .bStride = kTile,
                                 .c = scores + key * kTile + firstLane,
                                 .cStride = kTile,
                                 .accumulate = false});
  }
}

/// Keys of a tile after which no query of the vector at `lane` sees any, rounded up to the register tiles
/// that read them.
constexpr int64_t visibleKeys(int64_t lane, int64_t keys, bool diagonal) {
  return diagonal ? std::min(keys, roundUp(lane + kWidth, kTileRows)) : keys;
}

/// Heads that a task takes together: as many as share a cache line of a row, which two threads would pull to and fro.
constexpr int64_t headsTogether(int64_t heads, int64_t headDim) {
  constexpr int64_t kLineFloats = 16;
  return std::min(heads, std::max<int64_t>(1, kLineFloats / headDim));
}

/// Multiply-adds of one product over all pairs below which attention stays on the calling thread.
inline constexpr int64_t kSharedAttentionWork = 1 << 19;

/// Whether seven products shared evenly take less time than five whose largest task may hold up the others.
inline bool separateIsFaster(const Sequences& sequences, int64_t kvHeads, int threads) {
  double total = 0, largest = 0;
  for (const int64_t root : sequences.roots()) {
    int64_t pairs = 0;
    sequences.forEachOfFamily(sequences[root], [&](const Sequence& s) { pairs += sequences.pairs(s); });
    total += static_cast<double>(pairs * kvHeads);
    largest = std::max(largest, static_cast<double>(pairs));
  }
  return 7 * total / threads < 5 * std::max(largest, total / threads);
}

}  // namespace rlhf::RLHF_ISA
