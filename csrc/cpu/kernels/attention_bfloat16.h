#pragma once
#include "cpu/kernels/attention_tiles.h"
#include "cpu/kernels/bfloat16.h"
#include "cpu/kernels/bfloat16_parts.h"
#include "ops/attention.h"

// What attention's passes share where products are computed in bfloat16. Results of a product of tiles come in blocks of 32 × 32, those of
// one panel of columns one after another: below a column's first row its others lie 32 floats apart. Scores lie [keys][queries], and so do
// weights, which are then a factor by columns (B) as they are computed, two keys a pair, or one by rows (A): neither is transposed.

namespace rlhf::RLHF_ISA {

inline constexpr int64_t kBlockFloats = kBfloat16Tile * kBfloat16Tile;
inline constexpr float kLog2E = 1.44269504f;

constexpr int64_t panelsOf(int64_t count) { return ceilDivide(count, kBfloat16Tile); }

/// Floats that the results of a product take.
constexpr int64_t resultFloats(int64_t rows, int64_t columns) { return panelsOf(rows) * panelsOf(columns) * kBlockFloats; }
/// Where the column `lane` of the results of a product of so many rows begins.
constexpr int64_t columnOffset(int64_t lane, int64_t rows) {
  return lane / kBfloat16Tile * panelsOf(rows) * kBlockFloats + lane % kBfloat16Tile;
}

/// A factor of a product of tiles, packed: so many steps of k in each of its panels.
struct Factor {
  float* packed = nullptr;
  int64_t steps = 0;
};

/// Steps of k that a block of results sums.
struct Steps {
  int64_t begin, end;
};

/// On the diagonal a panel of queries sees the keys of its own panel and of those before it.
constexpr Steps keySteps(int64_t queryPanel, int64_t keys, bool diagonal) {
  return {0, diagonal ? std::min(panelsOf(keys), queryPanel + 1) : panelsOf(keys)};
}

/// Products of tiles in `compute`, on one thread.
class TileProducts {
 public:
  explicit TileProducts(DType compute)
      : compute_(compute), stepFloats_(bfloat16StepFloats(compute)), kernel_(bfloat16Kernel()),
        products_(compute == DType::BF16X3 ? kernel_.split : kernel_.rounded) {}

  /// To be called by a thread around its products.
  void begin() const {
    if (kernel_.begin) kernel_.begin();
  }
  void end() const {
    if (kernel_.end) kernel_.end();
  }

  bool split() const { return compute_ == DType::BF16X3; }
  int64_t factorFloats(int64_t lines, int64_t depth) const { return panelsOf(lines) * bfloat16Steps(depth) * stepFloats_; }
  /// Memory for a factor of at most `lines` rows of A or columns of B and so much of k.
  Factor take(ScratchFloats& scratch, int64_t lines, int64_t depth) const {
    return {scratch.take(factorFloats(lines, depth)), bfloat16Steps(depth)};
  }

  /// Rows [0, rows) of a matrix as A.
  void packA(const MatrixView& matrix, int64_t rows, int64_t depth, Factor& factor) const {
    factor.steps = bfloat16Steps(depth);
    packBfloat16A(compute_, matrix, rows, depth, 1.0f, factor.packed, factor.steps * stepFloats_);
  }
  void packB(const MatrixView& matrix, int64_t depth, int64_t columns, Factor& factor) const {
    factor.steps = bfloat16Steps(depth);
    packBfloat16B(compute_, matrix, depth, columns, factor.packed, factor.steps * stepFloats_);
  }

  /// results = A·B, or += A·B, of blocks for which stepsOf(row panel, column panel) names some steps; others stay as they are.
  template <class StepsOf>
  void multiply(const Factor& a, int64_t rows, const Factor& b, int64_t columns, float* results, bool accumulate, StepsOf&& stepsOf) const {
    for (int64_t column = 0; column < panelsOf(columns); ++column)
      for (int64_t row = 0; row < panelsOf(rows); ++row, results += kBlockFloats) {
        const Steps steps = stepsOf(row, column);
        if (steps.begin >= steps.end) continue;
        const cpu::Bfloat16Segment segment{step(a, row, steps.begin), step(b, column, steps.begin), steps.end - steps.begin};
        const int64_t height = std::min(kBfloat16Tile, rows - row * kBfloat16Tile);
        products_.multiply(&segment, 1, static_cast<int>(height), results, accumulate, {});
      }
  }

 private:
  const uint16_t* step(const Factor& factor, int64_t panel, int64_t step) const {
    return reinterpret_cast<const uint16_t*>(factor.packed + (panel * factor.steps + step) * stepFloats_);
  }

  DType compute_;
  int64_t stepFloats_;
  const cpu::Bfloat16Kernel& kernel_;
  const cpu::Bfloat16Products& products_;
};

/// scores[key][query] = k·q; on the diagonal only blocks that hold a visible pair.
inline void multiplyScores(const TileProducts& products, const Factor& keyRows, int64_t keys, const Factor& queryColumns, int64_t queries,
                           bool diagonal, float* scores) {
  products.multiply(keyRows, keys, queryColumns, queries, scores, false, [&](int64_t key, int64_t query) {
    return Steps{0, diagonal && key > query ? 0 : keyRows.steps};
  });
}

/// Where a factor by columns (B), split or not, has the pair of keys that begins with the even `key`, for the queries from `lane` on.
template <bool kSplit>
uint16_t* pairsOf(const Factor& factor, int64_t lane, int64_t key) {
  constexpr int64_t kHalf = kBfloat16Tile / 2, kStep = cpu::Bfloat16Parts<kSplit>::kCount * kBfloat16StepElements;
  return reinterpret_cast<uint16_t*>(factor.packed) + (lane / kBfloat16Tile * factor.steps + key / kBfloat16Tile) * kStep +
         lane % kBfloat16Tile / kHalf * (kBfloat16StepElements / 2) + key % kBfloat16Tile / 2 * kBfloat16Tile + lane % kHalf * 2;
}

/// Stores a pair of keys' numbers for a vector of queries.
template <bool kSplit>
void storePair(uint16_t* pairs, const RoundedParts<kSplit>& earlier, const RoundedParts<kSplit>& later) {
  for (int64_t part = 0; part < cpu::Bfloat16Parts<kSplit>::kCount; ++part) {
    const BitVec pair = earlier.part[part] >> 16 | later.part[part];
    std::memcpy(pairs + part * kBfloat16StepElements, &pair, sizeof pair);
  }
}

/// Stores the first `count` columns of a vector of results as rows of `width` numbers, times `factor`.
inline void storeColumns(const float* column, int64_t width, int count, Vec factor, float* rows, int64_t stride) {
  for (int64_t d = 0; d < width; d += kWidth) {
    Vec block[kWidth];
    for (int i = 0; i < kWidth; ++i) block[i] = d + i < width ? load(column + (d + i) * kBfloat16Tile) * factor : Vec{};
    transpose(block);
    const int wide = static_cast<int>(std::min<int64_t>(kWidth, width - d));
    for (int i = 0; i < count; ++i) storePartial(rows + i * stride + d, block[i], wide);
  }
}

/// Tiles of one side that a task takes, for what it packs of the other serves all of them: as many as leave every thread some tasks.
constexpr int64_t tilesTogether(int64_t tiles, int threads) {
  constexpr int64_t kTasksPerThread = 4;
  return threads == 1 ? tiles : std::max<int64_t>(1, tiles / (threads * kTasksPerThread));
}

/// Tiles of a sequence and one head, be it a query's or a key/value head.
struct TileRange {
  const Sequence* sequence;
  int64_t firstTile, endTile;
  int64_t head;
};

/// All tiles in ranges of at most `tilesPerRange`; a head's last ones first, as queries there see the most keys.
inline std::vector<TileRange> tileRanges(const Sequences& sequences, int64_t heads, int64_t tilesPerRange) {
  std::vector<TileRange> ranges;
  for (int64_t s = 0; s < sequences.size(); ++s)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t end = sequences[s].endTile(), first; end > sequences[s].firstTile(); end = first) {
        first = std::max(sequences[s].firstTile(), end - tilesPerRange);
        ranges.push_back({&sequences[s], first, end, head});
      }
  return ranges;
}

void attentionForwardBfloat16(OpContext& context, const AttentionForward& a);
void attentionBackwardBfloat16(OpContext& context, const AttentionBackward& a);

}  // namespace rlhf::RLHF_ISA
