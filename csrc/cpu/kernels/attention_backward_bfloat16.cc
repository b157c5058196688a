#include <cmath>
#include <numbers>

#include "cpu/kernels/attention_bfloat16.h"
#include "cpu/kernels/vector_loops.h"

// Attention's backward pass with products in bfloat16. With P = 2^(scale·log₂e·K·Qᵀ − log₂e·lse) and dS = P∘(V·dOᵀ − δ), both
// [keys][queries]:
//   dQᵀ = scale·Kᵀ·dS,  dK = scale·dS·Q,  dV = P·dO.
//
// As in float32 two schedules give the same bits: `joint`, a task for each root sequence with its children and key/value head, which
// holds all their tiles of keys and sums dQ, dK and dV; and `separate`, where some tasks hold tiles of queries and make dQ, and others
// hold tiles of keys and make dK and dV.

namespace rlhf::RLHF_ISA {
namespace {

/// The queries' side of a tile of one head.
struct QuerySide {
  SequenceTile tile{};
  Factor queries, dOutput;            // B: [D][queries]
  Factor queryRows, dOutputRows;      // B: [queries][D]; none where only dQ is made
  float* dQuery = nullptr;            // [D][queries], not scaled
  bool started = false;               // whether dQuery has been written
  alignas(64) float exponent[kTile];  // log₂e·lse
  alignas(64) float delta[kTile];
};

/// The keys' side of a tile of one key/value head.
struct KeySide {
  SequenceTile tile{};
  Factor keys, values;  // A: [keys][D]
  Factor keyColumns;    // A: [D][keys]
  float *dKey = nullptr, *dValue = nullptr;  // [keys][D], dKey not scaled; null where only dQ is made
};

/// Which gradients a task makes.
struct Wanted {
  bool queries, keys;
};

class GradientPass {
 public:
  GradientPass(const AttentionBackward& a, const TileProducts& products, Wanted wanted, ScratchFloats& scratch)
      : a_(a), products_(products), wanted_(wanted), dim_(a.headDim), factor_(static_cast<float>(a.scale * std::numbers::log2e)),
        scores_(scratch.take(resultFloats(kTile, kTile))), dWeights_(scratch.take(resultFloats(kTile, kTile))),
        weightRows_(products.take(scratch, kTile, kTile)), gradientRows_(products.take(scratch, kTile, kTile)),
        gradientPairs_(products.take(scratch, kTile, kTile)) {}

  /// Floats of scratch memory that a pass takes, and each side.
  struct Sizes {
    int64_t pass, query, key;
  };
  static Sizes sizesOf(const TileProducts& products, Wanted wanted, int64_t dim) {
    const int64_t across = products.factorFloats(kTile, dim), along = products.factorFloats(dim, kTile), result = resultFloats(kTile, dim);
    return {2 * resultFloats(kTile, kTile) + 3 * products.factorFloats(kTile, kTile),
            2 * across + wanted.keys * 2 * along + wanted.queries * result, 2 * across + along + wanted.keys * 2 * result};
  }

  void take(ScratchFloats& scratch, QuerySide& query) const {
    query.queries = products_.take(scratch, kTile, dim_), query.dOutput = products_.take(scratch, kTile, dim_);
    if (wanted_.keys) query.queryRows = products_.take(scratch, dim_, kTile), query.dOutputRows = products_.take(scratch, dim_, kTile);
    if (wanted_.queries) query.dQuery = scratch.take(resultFloats(dim_, kTile));
  }
  void take(ScratchFloats& scratch, KeySide& key) const {
    key.keys = products_.take(scratch, kTile, dim_), key.values = products_.take(scratch, kTile, dim_);
    key.keyColumns = products_.take(scratch, dim_, kTile);
    if (wanted_.keys) key.dKey = scratch.take(resultFloats(kTile, dim_)), key.dValue = scratch.take(resultFloats(kTile, dim_));
  }

  void pack(const SequenceTile& tile, int64_t head, QuerySide& query) const {
    const int64_t rows = tile.rows();
    const float* const q = rowOf(static_cast<const float*>(a_.q), tile.row(), a_.qStride, head, dim_);
    const float* const dO = rowOf(static_cast<const float*>(a_.dO), tile.row(), a_.oStride, head, dim_);
    prefetchRows(dO, a_.oStride, rows, dim_);
    query.tile = tile, query.started = false;
    products_.packB({q, 1, a_.qStride}, dim_, rows, query.queries);
    products_.packB({dO, 1, a_.oStride}, dim_, rows, query.dOutput);
    if (wanted_.keys) {
      products_.packB({q, a_.qStride, 1}, rows, dim_, query.queryRows);
      products_.packB({dO, a_.oStride, 1}, rows, dim_, query.dOutputRows);
    }
    loadStatistics(head, dO, query);
  }

  void pack(const SequenceTile& tile, int64_t kvHead, KeySide& key) const {
    const int64_t rows = tile.rows();
    const float* const k = rowOf(static_cast<const float*>(a_.k), tile.row(), a_.kStride, kvHead, dim_);
    const float* const v = rowOf(static_cast<const float*>(a_.v), tile.row(), a_.vStride, kvHead, dim_);
    prefetchRows(v, a_.vStride, rows, dim_);
    key.tile = tile;
    products_.packA({k, a_.kStride, 1}, rows, dim_, key.keys);
    products_.packA({v, a_.vStride, 1}, rows, dim_, key.values);
    if (wanted_.queries) products_.packA({k, 1, a_.kStride}, dim_, rows, key.keyColumns);
    if (!wanted_.keys) return;
    std::fill_n(key.dKey, resultFloats(rows, dim_), 0.0f);
    std::fill_n(key.dValue, resultFloats(rows, dim_), 0.0f);
  }

  /// Adds what a query tile and a key tile of which it sees some have to do with each other; nothing where it sees none.
  void add(QuerySide& query, KeySide& key) {
    const int64_t position = query.tile.position();
    if (key.tile.position() > position || firstVisibleKey(position, a_.window) >= key.tile.position() + key.tile.rows()) return;
    const int64_t queries = query.tile.rows(), keys = key.tile.rows();
    const TileMask mask{position - key.tile.position(), a_.window};
    const bool diagonal = mask.diagonal();
    multiplyScores(products_, key.keys, keys, query.queries, queries, diagonal, scores_);
    multiplyScores(products_, key.values, keys, query.dOutput, queries, diagonal, dWeights_);
    weightRows_.steps = gradientRows_.steps = panelsOf(queries), gradientPairs_.steps = panelsOf(keys);
    for (int64_t lane = 0; lane < panelsOf(queries) * kBfloat16Tile; lane += kWidth)
      products_.split() ? weigh<true>(query, keys, mask, lane) : weigh<false>(query, keys, mask, lane);
    if (wanted_.queries) {
      products_.multiply(key.keyColumns, dim_, gradientPairs_, queries, query.dQuery, query.started,
                         [&](int64_t, int64_t panel) { return keySteps(panel, keys, diagonal); });
      query.started = true;
    }
    if (!wanted_.keys) return;
    const auto querySteps = [&](int64_t keyPanel, int64_t) { return Steps{diagonal ? keyPanel : 0, panelsOf(queries)}; };
    products_.multiply(weightRows_, keys, query.dOutputRows, dim_, key.dValue, true, querySteps);
    products_.multiply(gradientRows_, keys, query.queryRows, dim_, key.dKey, true, querySteps);
  }

  void finish(int64_t head, const QuerySide& query) const {
    const int64_t rows = query.tile.rows();
    float* const dq = rowOf(static_cast<float*>(a_.dq), query.tile.row(), a_.qStride, head, dim_);
    for (int64_t lane = 0; lane < rows; lane += kWidth)
      storeColumns(query.dQuery + columnOffset(lane, dim_), dim_, static_cast<int>(std::min<int64_t>(kWidth, rows - lane)),
                   set1(static_cast<float>(a_.scale)), dq + lane * a_.qStride, a_.qStride);
  }

  void finish(int64_t kvHead, const KeySide& key) const {
    const int64_t rows = key.tile.rows();
    float* const dk = rowOf(static_cast<float*>(a_.dk), key.tile.row(), a_.kStride, kvHead, dim_);
    float* const dv = rowOf(static_cast<float*>(a_.dv), key.tile.row(), a_.vStride, kvHead, dim_);
    storeRows(key.dKey, rows, static_cast<float>(a_.scale), dk, a_.kStride);
    storeRows(key.dValue, rows, 1.0f, dv, a_.vStride);
  }

 private:
  /// delta is computed where dQ is, and read elsewhere.
  void loadStatistics(int64_t head, const float* dO, QuerySide& query) const {
    const int64_t rows = query.tile.rows(), first = query.tile.row() * a_.heads + head;
    const float* const o = rowOf(static_cast<const float*>(a_.o), query.tile.row(), a_.oStride, head, dim_);
    const float* const lse = static_cast<const float*>(a_.lse) + first;
    float* const delta = static_cast<float*>(a_.delta) + first;
    for (int64_t i = 0; i < rows; ++i) {
      query.exponent[i] = lse[i * a_.heads] * kLog2E;
      if (wanted_.queries)
        delta[i * a_.heads] = sumVectors(dim_, [&](int64_t d, auto lanes) {
          return lanes.load(dO + i * a_.oStride + d) * lanes.load(o + i * a_.oStride + d);
        });
      query.delta[i] = delta[i * a_.heads];
    }
    std::fill(query.exponent + rows, query.exponent + kTile, 0.0f);
    std::fill(query.delta + rows, query.delta + kTile, 0.0f);
  }

  /// Weights and gradients of scores of a vector of queries, rounded; zeros where there is no pair, or one that is hidden.
  template <bool kSplit>
  void weigh(const QuerySide& query, int64_t keys, const TileMask& mask, int64_t lane) const {
    using Parts = RoundedParts<kSplit>;
    const int64_t queries = query.tile.rows(), steps = keySteps(lane / kBfloat16Tile, keys, mask.diagonal()).end;
    const int64_t end = std::min(keys, steps * kBfloat16Tile);
    const int64_t firstHidden = lane + kWidth > queries ? 0 : mask.hidesAny(queries, keys) ? mask.firstHidden(lane) : end;
    const IntVec index = laneIndex() + static_cast<int>(lane);
    const Vec exponent = load(query.exponent + lane), delta = load(query.delta + lane);
    const float* const scores = scores_ + columnOffset(lane, keys);
    const float* const dWeights = dWeights_ + columnOffset(lane, keys);
    const auto gradientOf = [&](int64_t key) {
      Vec weight = exp2(load(scores + key * kBfloat16Tile) * factor_ - exponent);
      Vec gradient = weight * (load(dWeights + key * kBfloat16Tile) - delta);
      if (key >= firstHidden) {
        const IntVec hidden = mask.hidden(index, IntVec{} + static_cast<int>(key)) | (index >= static_cast<int>(queries));
        weight = hidden ? Vec{} : weight, gradient = hidden ? Vec{} : gradient;
      }
      const Parts rounded = Parts::ofComputed(gradient);
      storeLine<kSplit>(weightRows_, key, lane, Parts::ofComputed(weight));
      storeLine<kSplit>(gradientRows_, key, lane, rounded);
      return rounded;
    };
    int64_t key = 0;
    for (; key + 2 <= end; key += 2) {
      const Parts earlier = gradientOf(key);
      storePair<kSplit>(pairsOf<kSplit>(gradientPairs_, lane, key), earlier, gradientOf(key + 1));
    }
    if (key < end) {
      storePair<kSplit>(pairsOf<kSplit>(gradientPairs_, lane, key), gradientOf(key), Parts::zero());
      key += 2;
    }
    for (; key < steps * kBfloat16Tile; key += 2)
      storePair<kSplit>(pairsOf<kSplit>(gradientPairs_, lane, key), Parts::zero(), Parts::zero());
  }

  /// Stores a key's numbers for a vector of queries in a factor by rows (A).
  template <bool kSplit>
  static void storeLine(const Factor& factor, int64_t key, int64_t lane, const RoundedParts<kSplit>& rounded) {
    constexpr int64_t kParts = cpu::Bfloat16Parts<kSplit>::kCount;
    uint16_t* const line = reinterpret_cast<uint16_t*>(factor.packed) +
                           (key / kBfloat16Tile * factor.steps + lane / kBfloat16Tile) * kParts * kBfloat16StepElements +
                           key % kBfloat16Tile * kBfloat16Tile + lane % kBfloat16Tile;
    for (int64_t part = 0; part < kParts; ++part) Bfloat16::storeUpper(line + part * kBfloat16StepElements, rounded.part[part], kWidth);
  }

  /// rows = factor · results, of which the rows of a block lie together.
  void storeRows(const float* results, int64_t rows, float factor, float* to, int64_t stride) const {
    for (int64_t d = 0; d < dim_; d += kBfloat16Tile)
      for (int64_t row = 0; row < rows; ++row)
        forEachVector(std::min(kBfloat16Tile, dim_ - d), [&](int64_t i, auto lanes) {
          lanes.store(to + row * stride + d + i, lanes.load(results + columnOffset(d, rows) + row * kBfloat16Tile + i) * factor);
        });
  }

  const AttentionBackward& a_;
  const TileProducts& products_;
  Wanted wanted_;
  int64_t dim_;
  float factor_;                      // scores times it are powers of two's exponents
  float *scores_, *dWeights_;         // [keys][queries]
  Factor weightRows_, gradientRows_;  // A: [keys][queries]
  Factor gradientPairs_;              // B: the same
};

/// So many sides in a thread's scratch memory.
template <class Side>
std::vector<Side> takeSides(const GradientPass& pass, int64_t count, ScratchFloats& scratch) {
  std::vector<Side> sides(static_cast<size_t>(count));
  for (Side& side : sides) pass.take(scratch, side);
  return sides;
}

/// The sides of a range's tiles, packed.
template <class Side>
std::vector<Side> packedSides(const GradientPass& pass, const TileRange& range, ScratchFloats& scratch) {
  std::vector<Side> sides = takeSides<Side>(pass, range.endTile - range.firstTile, scratch);
  int64_t tile = range.firstTile;
  for (Side& side : sides) pass.pack({range.sequence, tile++}, range.head, side);
  return sides;
}

class Backward {
 public:
  Backward(OpContext& context, const AttentionBackward& a)
      : context_(context), a_(a), products_(a.compute), sequences_("attentionBackward", a), queryTiles_(sequences_, a.heads),
        keyTiles_(sequences_, a.kvHeads), worthSharing_(queryTiles_.pairs() * a.headDim * 5 / 2 > kSharedAttentionWork) {}

  void run() {
    const int threads = worthSharing_ ? cpu::pool(context_).size() : 1;
    if (fitsJointly() && (threads == 1 || !separateIsFaster(sequences_, a_.kvHeads, threads)))
      joint();
    else
      separate(threads);
  }

 private:
  /// Whether a task has room for all tiles of keys that it holds.
  bool fitsJointly() const {
    int64_t most = 0;
    for (const int64_t root : sequences_.roots()) most = std::max(most, heldTiles(sequences_[root]));
    return most <= capacity({true, true});
  }
  /// Tiles of keys that are held at a time: a root's and one child's.
  int64_t heldTiles(const Sequence& root) const {
    int64_t child = 0;
    for (int64_t s = root.firstChild; s >= 0; s = sequences_[s].nextSibling) child = std::max(child, tilesOf(sequences_[s]));
    return tilesOf(root) + child;
  }
  static int64_t tilesOf(const Sequence& sequence) { return sequence.endTile() - sequence.firstTile(); }

  /// Tiles of one side that fit a thread's scratch memory beside one of the other.
  int64_t capacity(Wanted wanted) const {
    const GradientPass::Sizes sizes = GradientPass::sizesOf(products_, wanted, a_.headDim);
    const int64_t room = static_cast<int64_t>(cpu::kScratchPerThread / sizeof(float)) - sizes.pass;
    return std::max<int64_t>(1, wanted.keys ? (room - sizes.query) / sizes.key : (room - sizes.key) / sizes.query);
  }

  template <class Tasks>
  void forEach(int64_t count, Tasks&& task) {
    forEachTask(context_, count, worthSharing_, [&](int64_t index, int slot) {
      products_.begin();
      task(index, cpu::threadScratch(context_, slot));
      products_.end();
    });
  }

  void joint() {
    const std::vector<int64_t>& roots = sequences_.roots();
    forEach(static_cast<int64_t>(roots.size()) * a_.kvHeads, [&](int64_t index, char* memory) {
      family(sequences_[roots[static_cast<size_t>(index / a_.kvHeads)]], index % a_.kvHeads, memory);
    });
  }

  /// dQ, dK and dV of a sequence, its children and one key/value head.
  void family(const Sequence& root, int64_t kvHead, char* memory) const {
    ScratchFloats scratch(memory);
    GradientPass pass(a_, products_, {true, true}, scratch);
    QuerySide query;
    pass.take(scratch, query);
    std::vector<KeySide> sides = takeSides<KeySide>(pass, heldTiles(root), scratch);
    const auto rootEnd = sides.begin() + tilesOf(root);
    const auto loadAll = [&](const Sequence& s, auto side) {
      for (int64_t tile = s.firstTile(); tile < s.endTile(); ++tile) pass.pack({&s, tile}, kvHead, *side++);
      return side;
    };
    loadAll(root, sides.begin());
    sequences_.forEachOfFamily(root, [&](const Sequence& s) {
      const auto end = &s == &root ? rootEnd : loadAll(s, rootEnd);
      forEachQueryTile(s, kvHead, s.firstTile(), [&](const SequenceTile& tile, int64_t head) {
        pass.pack(tile, head, query);
        for (auto side = sides.begin(); side != end; ++side) pass.add(query, *side);
        pass.finish(head, query);
      });
      for (auto side = rootEnd; side != end; ++side) pass.finish(kvHead, *side);
    });
    for (auto side = sides.begin(); side != rootEnd; ++side) pass.finish(kvHead, *side);
  }

  template <class Body>
  void forEachQueryTile(const Sequence& s, int64_t kvHead, int64_t firstTile, Body&& body) const {
    const int64_t group = a_.heads / a_.kvHeads;
    for (int64_t head = kvHead * group; head < (kvHead + 1) * group; ++head)
      for (int64_t tile = std::max(firstTile, s.firstTile()); tile < s.endTile(); ++tile) body({&s, tile}, head);
  }

  void separate(int threads) {
    const std::vector<TileRange> queries = rangesOf(queryTiles_, a_.heads, threads, capacity({true, false}));
    forEach(static_cast<int64_t>(queries.size()), [&](int64_t index, char* memory) {
      queryTiles(queries[static_cast<size_t>(index)], memory);
    });
    const std::vector<TileRange> keys = rangesOf(keyTiles_, a_.kvHeads, threads, capacity({false, true}));
    forEach(static_cast<int64_t>(keys.size()), [&](int64_t index, char* memory) {
      keyTiles(keys[static_cast<size_t>(index)], memory);
    });
  }

  std::vector<TileRange> rangesOf(const TileList& tiles, int64_t heads, int threads, int64_t most) const {
    return tileRanges(sequences_, heads, std::min(most, tilesTogether(tiles.size(), threads)));
  }

  /// dQ of some query tiles of one head: keys pass by.
  void queryTiles(const TileRange& range, char* memory) const {
    ScratchFloats scratch(memory);
    GradientPass pass(a_, products_, {true, false}, scratch);
    KeySide key;
    pass.take(scratch, key);
    std::vector<QuerySide> sides = packedSides<QuerySide>(pass, range, scratch);
    const int64_t kvHead = range.head * a_.kvHeads / a_.heads;
    const int64_t oldest = firstVisibleKey(sides.front().tile.position(), a_.window) / kTile;
    const auto passBy = [&](const Sequence& s, int64_t end) {
      for (int64_t tile = std::max(oldest, s.firstTile()); tile < end; ++tile) {
        pass.pack({&s, tile}, kvHead, key);
        for (QuerySide& query : sides) pass.add(query, key);
      }
    };
    if (range.sequence->parent >= 0) passBy(sequences_[range.sequence->parent], sequences_[range.sequence->parent].endTile());
    passBy(*range.sequence, range.endTile);
    for (const QuerySide& query : sides) pass.finish(range.head, query);
  }

  /// dK and dV of some key tiles from all queries that see them, those of children included. Needs delta.
  void keyTiles(const TileRange& range, char* memory) const {
    ScratchFloats scratch(memory);
    GradientPass pass(a_, products_, {false, true}, scratch);
    QuerySide query;
    pass.take(scratch, query);
    std::vector<KeySide> sides = packedSides<KeySide>(pass, range, scratch);
    const int64_t end = sides.back().tile.position() + sides.back().tile.rows();
    sequences_.forEachOfFamily(*range.sequence, [&](const Sequence& reader) {
      forEachQueryTile(reader, range.head, range.firstTile, [&](const SequenceTile& tile, int64_t head) {
        if (firstVisibleKey(tile.position(), a_.window) >= end) return;
        pass.pack(tile, head, query);
        for (KeySide& key : sides) pass.add(query, key);
      });
    });
    for (const KeySide& key : sides) pass.finish(range.head, key);
  }

  OpContext& context_;
  const AttentionBackward& a_;
  TileProducts products_;
  Sequences sequences_;
  TileList queryTiles_, keyTiles_;
  bool worthSharing_;
};

}  // namespace

void attentionBackwardBfloat16(OpContext& context, const AttentionBackward& a) { Backward(context, a).run(); }

}  // namespace rlhf::RLHF_ISA
