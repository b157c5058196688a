#pragma once
#include <vector>

#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/simd.h"

// What attention's forward and backward passes share. Queries and keys are cut into tiles of kTile positions
// of their sequence. Score tiles lie transposed, [keys][queries], queries along vector lanes: softmax then
// needs no horizontal operations, and K, V and their gradients are read and written as they lie in memory.

namespace rlhf::RLHF_ISA {

inline constexpr int64_t kTile = 64;

constexpr int64_t roundUp(int64_t value, int64_t multiple) { return ceilDivide(value, multiple) * multiple; }

/// Floats of a thread's scratch memory, handed out in order.
class ScratchFloats {
 public:
  explicit ScratchFloats(char* memory) : next_(memory) {}
  float* take(int64_t count) {
    float* block = reinterpret_cast<float*>(next_);
    next_ += roundUp(count * static_cast<int64_t>(sizeof(float)), 64);
    return block;
  }

 private:
  char* next_;
};

/// A thread's scratch memory holds at most eight [kTile, headDim] tiles and a few [kTile, kTile] ones.
inline void requireHeadDim(int64_t headDim, const char* op) {
  constexpr int64_t kMaxHeadDim = 1024;
  if (headDim > kMaxHeadDim)
    throw Error(code::kUnsupported,
                format("%s: headDim is %lld, the CPU supports at most %lld", op,
                       static_cast<long long>(headDim), static_cast<long long>(kMaxHeadDim)));
}

/// One tile of one sequence of a packed batch.
struct SequenceTile {
  int64_t begin;   // first row of the sequence
  int64_t length;  // of the sequence
  int64_t tile;
  /// First row of the tile in the batch, and how many there are.
  int64_t row() const { return begin + tile * kTile; }
  int64_t rows() const { return std::min(kTile, length - tile * kTile); }
};

/// Position of the oldest key that the query at `position` sees.
constexpr int64_t firstVisibleKey(int64_t position, int64_t window) {
  return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
}

/// Pairs of a query and a key that it sees in a sequence of `length`.
constexpr int64_t visiblePairs(int64_t length, int64_t window) {
  const int64_t hidden = window > 0 ? std::max<int64_t>(0, length - window) : 0;
  return length * (length + 1) / 2 - hidden * (hidden + 1) / 2;
}

/// Which keys of one tile the queries of another see: query q sees key k where q + shift − window < k ≤ q + shift.
struct TileMask {
  int64_t shift;   // position of the first query less that of the first key
  int64_t window;  // 0: none

  bool diagonal() const { return shift == 0; }
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

/// Every tile of every head of a packed batch: sequence after sequence, then head after head, so that the
/// tiles in flight share rows in the caches; the last and most expensive tile of a head first.
class TileList {
 public:
  struct Item {
    SequenceTile tile;
    int64_t head;
  };

  TileList(const int32_t* offsets, int64_t sequences, int64_t heads, int64_t window)
      : offsets_(offsets), heads_(heads), ends_(static_cast<size_t>(sequences)) {
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t length = offsets[s + 1] - offsets[s];
      size_ += heads * ceilDivide(length, kTile);
      ends_[static_cast<size_t>(s)] = size_;
      pairs_ += heads * visiblePairs(length, window);
    }
  }
  int64_t size() const { return size_; }
  /// Pairs of a query and a key that it sees, over all heads.
  int64_t pairs() const { return pairs_; }

  Item operator[](int64_t index) const {
    const int64_t s = std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin();
    const int64_t length = offsets_[s + 1] - offsets_[s], tiles = ceilDivide(length, kTile);
    const int64_t local = index - (ends_[static_cast<size_t>(s)] - heads_ * tiles);
    return {{offsets_[s], length, tiles - 1 - local % tiles}, local / tiles};
  }

 private:
  const int32_t* offsets_;
  int64_t heads_;
  std::vector<int64_t> ends_;
  int64_t size_ = 0, pairs_ = 0;
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

/// Multiply-adds of one product over all pairs below which attention stays on the calling thread.
inline constexpr int64_t kSharedAttentionWork = 1 << 19;

}  // namespace rlhf::RLHF_ISA
