#pragma once
#include <vector>

#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/simd.h"

// What attention's forward and backward passes share. Queries and keys are cut into tiles of kTile positions of their
// sequence. Score tiles lie transposed, [keys][queries], queries along vector lanes: softmax then needs no horizontal operations,
// and K, V and their gradients are read and written as they lie in memory.

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
    throw Error(code::kUnsupported, format("%s: headDim is %lld, the CPU supports at most %lld", op,
                                           static_cast<long long>(headDim), static_cast<long long>(kMaxHeadDim)));
}

/// One tile of one sequence of a packed batch.
struct SequenceTile {
  int64_t begin;   // first row of the sequence
  int64_t length;  // of the sequence
  int64_t tile;
  int64_t row() const { return begin + tile * kTile; }
  int64_t rows() const { return std::min(kTile, length - tile * kTile); }
};

/// All tiles of a packed batch, sequence after sequence, the last and most expensive tile of each first.
class TileList {
 public:
  TileList(const int32_t* offsets, int64_t sequences) : offsets_(offsets), ends_(static_cast<size_t>(sequences)) {
    int64_t total = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t length = offsets[s + 1] - offsets[s];
      ends_[static_cast<size_t>(s)] = total += ceilDivide(length, kTile);
      pairs_ += length * (length + 1) / 2;
    }
    size_ = total;
  }
  int64_t size() const { return size_; }
  /// Pairs of a query and a key that it sees.
  int64_t pairs() const { return pairs_; }

  SequenceTile operator[](int64_t index) const {
    const auto end = std::upper_bound(ends_.begin(), ends_.end(), index);
    const int64_t s = end - ends_.begin();
    return {offsets_[s], offsets_[s + 1] - offsets_[s], *end - 1 - index};
  }

 private:
  const int32_t* offsets_;
  std::vector<int64_t> ends_;
  int64_t size_ = 0, pairs_ = 0;
};

/// scores[key][query] = Σ_d keyRows[key][d] · queriesT[d][query]; on the diagonal only the vectors that hold a visible pair.
inline void multiplyKeyRows(const float* keyRows, int64_t keyStride, int64_t keys, int64_t dim, const float* queriesT,
                            int64_t lanes, bool diagonal, float* scores) {
  const int64_t step = diagonal ? kTileRows : keys;
  for (int64_t key = 0; key < keys; key += step) {
    const int64_t firstLane = diagonal ? key / kWidth * kWidth : 0;
    multiply<Contiguous::Depth>(std::min(step, keys - key), lanes - firstLane,
                                {.depth = dim, .a = keyRows + key * keyStride, .aStride = keyStride,
                                 .b = queriesT + firstLane, .bStride = kTile, .c = scores + key * kTile + firstLane,
                                 .cStride = kTile, .accumulate = false});
  }
}

/// Keys of a tile after which no query of the vector at `lane` sees any, rounded up to the register tiles that read them.
constexpr int64_t visibleKeys(int64_t lane, int64_t keys, bool diagonal) {
  return diagonal ? std::min(keys, roundUp(lane + kWidth, kTileRows)) : keys;
}

/// Multiply-adds of one product over all pairs below which attention stays on the calling thread.
inline constexpr int64_t kSharedAttentionWork = 1 << 19;

}  // namespace rlhf::RLHF_ISA
