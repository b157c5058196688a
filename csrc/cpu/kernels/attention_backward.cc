#include "cpu/kernels/attention_bfloat16.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"

// With P = exp(S − lse), dP = dO·Vᵀ, δ = Σ_d dO·O and dS = scale·P∘(dP − δ):
//   dV = Pᵀ·dO,  dK = dSᵀ·Q,  dQ = dS·K.
//
// Two schedules give the same bits, every sum running over the same tiles in the same order:
//   joint     one task per (sequence with its children, key/value head) makes dQ, dK and dV: five products per
//             pair of tiles;
//   separate  one task per query tile makes dQ, then one per key tile makes dK and dV: seven products, but as
//             many tasks as tiles, for long sequences with few heads.

namespace rlhf::RLHF_ISA {
namespace {

/// The queries' side of a tile of one head, ready for products.
struct QueryTile {
  float* queriesT;  // [D][kTile], scaled
  float* dOutputT;  // [D][kTile]
  float* queries;   // [kTile][D]
  float* dOutput;   // [kTile][D]
  float* dQuery;    // [kTile][D]
  alignas(64) float lse[kTile];
  alignas(64) float delta[kTile];
};

/// The longest sequence of narrow heads whose dK and dV a thread's scratch memory holds beside a task's tiles.
constexpr int64_t kRowsApart = 4096;
static_assert((8 * kTile * kWidth + 2 * kTile * kTile + 2 * kRowsApart * kWidth) * sizeof(float) <= cpu::kScratchPerThread);

/// Memory of a task of the joint schedule, and of the first part of the separate one.
struct QueryScratch {
  QueryTile query;
  float* p;        // [keys][queries]
  float* dScore;   // [keys][queries]
  float* keyCopy;  // [kTile][D]

  QueryScratch(char* memory, int64_t dim) {
    ScratchFloats scratch(memory);
    query.queriesT = scratch.take(kTile * dim);
    query.dOutputT = scratch.take(kTile * dim);
    query.queries = scratch.take(kTile * dim);
    query.dOutput = scratch.take(kTile * dim);
    query.dQuery = scratch.take(kTile * dim);
    p = scratch.take(kTile * kTile);
    dScore = scratch.take(kTile * kTile);
    keyCopy = scratch.take(kTile * dim);
    end_ = scratch.take(0);
  }
  /// What is left of the memory, at least 2 · kRowsApart rows of narrow heads.
  float* end() const { return end_; }

 private:
  float* end_;
};

void loadQueryTile(const AttentionBackward& a, int64_t head, const SequenceTile& tile, QueryTile& out) {
  const int64_t dim = a.headDim, rows = tile.rows();
  const float* q = rowOf(static_cast<const float*>(a.q), tile.row(), a.qStride, head, dim);
  const float* o = rowOf(static_cast<const float*>(a.o), tile.row(), a.oStride, head, dim);
  const float* dO = rowOf(static_cast<const float*>(a.dO), tile.row(), a.oStride, head, dim);
  prefetchRows(dO, a.oStride, rows, dim);
  prefetchRows(o, a.oStride, rows, dim);
  transposeScaled(q, a.qStride, rows, dim, static_cast<float>(a.scale), out.queriesT, kTile);
  transposeScaled(dO, a.oStride, rows, dim, 1.0f, out.dOutputT, kTile);
  copyRows(q, a.qStride, rows, dim, out.queries);
  copyRows(dO, a.oStride, rows, dim, out.dOutput);

  float* const delta = static_cast<float*>(a.delta) + tile.row() * a.heads + head;
  const float* const lse = static_cast<const float*>(a.lse) + tile.row() * a.heads + head;
  for (int64_t i = 0; i < kTile; ++i) {
    out.lse[i] = i < rows ? lse[i * a.heads] : 0.0f;
    out.delta[i] = i >= rows ? 0.0f : sumVectors(dim, [&](int64_t d, auto lanes) {
      return lanes.load(dO + i * a.oStride + d) * lanes.load(o + i * a.oStride + d);
    });
    if (i < rows) delta[i * a.heads] = out.delta[i];
  }
}

/// p[key][query] and dScore[key][query] of one pair of tiles.
void scoreGradients(const AttentionBackward& a, const QueryTile& query, int64_t queries, const float* k,
                    const float* v, int64_t keys, const TileMask& mask, float* p, float* dScore) {
  const int64_t lanes = roundUp(queries, kWidth);
  const bool diagonal = mask.diagonal(), masked = mask.hidesAny(queries, keys);
  multiplyKeyRows(k, a.kStride, keys, a.headDim, query.queriesT, lanes, diagonal, p);
  multiplyKeyRows(v, a.vStride, keys, a.headDim, query.dOutputT, lanes, diagonal, dScore);
  const float scale = static_cast<float>(a.scale);
  for (int64_t lane = 0; lane < lanes; lane += kWidth) {
    const IntVec index = laneIndex() + static_cast<int>(lane);
    const Vec lse = load(query.lse + lane), delta = load(query.delta + lane);
    const int64_t end = visibleKeys(lane, keys, diagonal), firstHidden = mask.firstHidden(lane);
    for (int64_t key = 0; key < end; ++key) {
      float* const score = p + key * kTile + lane;
      float* const gradient = dScore + key * kTile + lane;
      Vec probability = exp(load(score) - lse);
      if (masked && key >= firstHidden) probability = mask.hidden(index, IntVec{} + static_cast<int>(key)) ? Vec{} : probability;
      store(score, probability);
      store(gradient, probability * (load(gradient) - delta) * scale);
    }
  }
}

/// dQuery[query] += dS·K over one key tile; on the diagonal over the keys that the rows see.
void accumulateDQuery(int64_t dim, int64_t queries, int64_t keys, bool diagonal, bool first,
                      const float* dScore, const float* keyRows, float* dQuery) {
  for (int64_t row = 0; row < queries; row += kTileRows)
    multiply<Contiguous::Rows>(std::min<int64_t>(kTileRows, queries - row), dim,
                               {.depth = diagonal ? std::min<int64_t>(keys, row + kTileRows) : keys,
                                .a = dScore + row,
                                .aStride = kTile,
                                .b = keyRows,
                                .bStride = dim,
                                .c = dQuery + row * dim,
                                .cStride = dim,
                                .accumulate = !first});
}

/// gradient[key] += weightᵀ·rows over one query tile; on the diagonal over the queries that see the key.
/// `kind` tells whether weight lies [key][query] (Depth) or [query][key] (Rows).
template <Contiguous kind>
void accumulateKeySide(int64_t dim, int64_t queries, int64_t keys, bool diagonal, const float* weight,
                       const float* rows, float* gradient, int64_t gradientStride) {
  for (int64_t key = 0; key < keys; key += kTileRows) {
    const int64_t firstQuery = diagonal ? key : 0;
    const float* a =
        kind == Contiguous::Depth ? weight + key * kTile + firstQuery : weight + firstQuery * kTile + key;
    multiply<kind>(std::min<int64_t>(kTileRows, keys - key), dim,
                   {.depth = queries - firstQuery,
                    .a = a,
                    .aStride = kTile,
                    .b = rows + firstQuery * dim,
                    .bStride = dim,
                    .c = gradient + key * gradientStride,
                    .cStride = gradientStride,
                    .accumulate = true});
  }
}

void clearRows(float* base, int64_t stride, int64_t rows, int64_t dim) {
  if (stride == dim) {
    std::fill_n(base, rows * dim, 0.0f);
    return;
  }
  for (int64_t r = 0; r < rows; ++r) std::fill_n(base + r * stride, dim, 0.0f);
}

/// The tiles of keys that a query tile sees some of, in rising positions: the parent's, then its own.
class VisibleKeyTiles {
 public:
  VisibleKeyTiles(const Sequences& sequences, const SequenceTile& query, int64_t window)
      : own_(*query.sequence), parent_(own_.parent < 0 ? own_ : sequences[own_.parent]) {
    const int64_t oldest = firstVisibleKey(query.position(), window) / kTile;
    firstOfParent_ = oldest;
    ofParent_ = own_.parent < 0 ? 0 : std::max<int64_t>(0, parent_.endTile() - oldest);
    firstOwn_ = std::max(own_.firstTile(), oldest);
    size_ = ofParent_ + query.tile + 1 - firstOwn_;
  }
  int64_t size() const { return size_; }
  SequenceTile operator[](int64_t index) const {
    if (index < ofParent_) return {&parent_, firstOfParent_ + index};
    return {&own_, firstOwn_ + index - ofParent_};
  }

 private:
  const Sequence& own_;
  const Sequence& parent_;
  int64_t firstOfParent_, ofParent_, firstOwn_, size_;
};

/// Where dK and dV of one key/value head are summed: rows of the batch from `firstRow` on.
struct KeyGradients {
  float *dk, *dv;
  int64_t dkStride, dvStride;
  int64_t firstRow;

  float* dkOf(int64_t row) const { return dk + (row - firstRow) * dkStride; }
  float* dvOf(int64_t row) const { return dv + (row - firstRow) * dvStride; }
};

/// One query tile of one head against all keys that it sees: dQ, and with `keySide` its share of dK and dV.
void queryTileBackward(const AttentionBackward& a, const Sequences& sequences, int64_t head, const SequenceTile& tile,
                       const KeyGradients* keySide, QueryScratch& scratch) {
  const int64_t kvHead = head * a.kvHeads / a.heads, dim = a.headDim, queries = tile.rows();
  const VisibleKeyTiles keyTiles(sequences, tile, a.window);
  loadQueryTile(a, head, tile, scratch.query);
  for (int64_t index = 0; index < keyTiles.size(); ++index) {
    const SequenceTile key = keyTiles[index];
    const int64_t keys = key.rows();
    const TileMask mask{tile.position() - key.position(), a.window};
    const bool diagonal = mask.diagonal();
    const float* k = rowOf(static_cast<const float*>(a.k), key.row(), a.kStride, kvHead, dim);
    const float* v = rowOf(static_cast<const float*>(a.v), key.row(), a.vStride, kvHead, dim);
    scoreGradients(a, scratch.query, queries, k, v, keys, mask, scratch.p, scratch.dScore);
    copyRows(k, a.kStride, keys, dim, scratch.keyCopy);
    accumulateDQuery(dim, queries, keys, diagonal, index == 0, scratch.dScore, scratch.keyCopy,
                     scratch.query.dQuery);
    if (!keySide) continue;
    accumulateKeySide<Contiguous::Depth>(dim, queries, keys, diagonal, scratch.p, scratch.query.dOutput,
                                         keySide->dvOf(key.row()), keySide->dvStride);
    accumulateKeySide<Contiguous::Depth>(dim, queries, keys, diagonal, scratch.dScore, scratch.query.queries,
                                         keySide->dkOf(key.row()), keySide->dkStride);
  }
  copyRows(scratch.query.dQuery, dim, queries, dim, rowOf(static_cast<float*>(a.dq), tile.row(), a.qStride, head, dim), a.qStride);
}

/// All of one sequence, its children and one key/value head. Narrow heads of a sequence by itself are summed in scratch memory: rows of dK
/// and dV in place would be a part of a cache line each.
void jointBackward(const AttentionBackward& a, const Sequences& sequences, const Sequence& root, int64_t kvHead,
                   char* memory) {
  const int64_t group = a.heads / a.kvHeads, dim = a.headDim;
  QueryScratch scratch(memory, dim);
  float* const dk = rowOf(static_cast<float*>(a.dk), 0, a.kStride, kvHead, dim);
  float* const dv = rowOf(static_cast<float*>(a.dv), 0, a.vStride, kvHead, dim);
  KeyGradients gradients{dk, dv, a.kStride, a.vStride, 0};
  const bool apart = dim <= kWidth && root.firstChild < 0 && root.length <= kRowsApart;
  float* const sums = scratch.end();
  if (apart) gradients = {sums, sums + root.length * dim, dim, dim, root.begin};
  sequences.forEachOfFamily(root, [&](const Sequence& s) {
    clearRows(gradients.dkOf(s.begin), gradients.dkStride, s.length, dim);
    clearRows(gradients.dvOf(s.begin), gradients.dvStride, s.length, dim);
    for (int64_t head = kvHead * group; head < (kvHead + 1) * group; ++head)
      for (int64_t tile = s.firstTile(); tile < s.endTile(); ++tile)
        queryTileBackward(a, sequences, head, {&s, tile}, &gradients, scratch);
  });
  if (!apart) return;
  copyRows(sums, dim, root.length, dim, dk + root.begin * a.kStride, a.kStride);
  copyRows(sums + root.length * dim, dim, root.length, dim, dv + root.begin * a.vStride, a.vStride);
}

/// Memory of a task of the separate schedule's second part. Here score tiles lie [queries][keys].
struct KeyScratch {
  float *keysT, *valuesT;             // [D][kTile]
  float *queries, *scaled, *dOutput;  // [kTile][D]
  float *p, *dScore;                  // [queries][keys]

  KeyScratch(char* memory, int64_t dim) {
    ScratchFloats scratch(memory);
    for (float** tile : {&keysT, &valuesT, &queries, &scaled, &dOutput}) *tile = scratch.take(kTile * dim);
    for (float** tile : {&p, &dScore}) *tile = scratch.take(kTile * kTile);
  }
};

/// p[query][key] and dScore[query][key]: scoreGradients with the sides exchanged, the same bits.
void scoreGradientsByKey(const AttentionBackward& a, const float* lse, const float* delta, int64_t queries,
                         int64_t keys, const TileMask& mask, const KeyScratch& s) {
  const int64_t allLanes = roundUp(keys, kWidth);
  const bool masked = mask.hidesAny(queries, keys);
  const float scale = static_cast<float>(a.scale);
  for (int64_t first = 0; first < queries; first += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, queries - first);
    const int64_t lanes = mask.diagonal() ? std::min(allLanes, roundUp(first + rows, kWidth)) : allLanes;
    multiply<Contiguous::Depth>(rows, lanes,
                                {.depth = a.headDim,
                                 .a = s.scaled + first * a.headDim,
                                 .aStride = a.headDim,
                                 .b = s.keysT,
                                 .bStride = kTile,
                                 .c = s.p + first * kTile,
                                 .cStride = kTile,
                                 .accumulate = false});
    multiply<Contiguous::Depth>(rows, lanes,
                                {.depth = a.headDim,
                                 .a = s.dOutput + first * a.headDim,
                                 .aStride = a.headDim,
                                 .b = s.valuesT,
                                 .bStride = kTile,
                                 .c = s.dScore + first * kTile,
                                 .cStride = kTile,
                                 .accumulate = false});
    for (int64_t query = first; query < first + rows; ++query)
      for (int64_t lane = 0; lane < lanes; lane += kWidth) {
        float* const score = s.p + query * kTile + lane;
        float* const gradient = s.dScore + query * kTile + lane;
        Vec probability = exp(load(score) - lse[query * a.heads]);
        if (masked)
          probability = mask.hidden(IntVec{} + static_cast<int>(query), laneIndex() + static_cast<int>(lane))
                            ? Vec{}
                            : probability;
        store(score, probability);
        store(gradient, probability * (load(gradient) - delta[query * a.heads]) * scale);
      }
  }
}

/// dK and dV of one key tile from all queries that see it, those of children included. Needs delta.
void keyTileBackward(const AttentionBackward& a, const Sequences& sequences, int64_t kvHead, const SequenceTile& key,
                     char* memory) {
  const int64_t group = a.heads / a.kvHeads, dim = a.headDim, keys = key.rows();
  const KeyScratch s(memory, dim);
  const float* k = rowOf(static_cast<const float*>(a.k), key.row(), a.kStride, kvHead, dim);
  const float* v = rowOf(static_cast<const float*>(a.v), key.row(), a.vStride, kvHead, dim);
  float* dk = rowOf(static_cast<float*>(a.dk), key.row(), a.kStride, kvHead, dim);
  float* dv = rowOf(static_cast<float*>(a.dv), key.row(), a.vStride, kvHead, dim);
  transposeScaled(k, a.kStride, keys, dim, 1.0f, s.keysT, kTile);
  transposeScaled(v, a.vStride, keys, dim, 1.0f, s.valuesT, kTile);
  clearRows(dk, a.kStride, keys, dim);
  clearRows(dv, a.vStride, keys, dim);

  const auto addFrom = [&](int64_t head, const SequenceTile& query) {
      const int64_t queries = query.rows();
      const TileMask mask{query.position() - key.position(), a.window};
      const bool diagonal = mask.diagonal();
      copyRows(rowOf(static_cast<const float*>(a.q), query.row(), a.qStride, head, dim), a.qStride, queries,
               dim, s.queries);
      copyRows(rowOf(static_cast<const float*>(a.dO), query.row(), a.oStride, head, dim), a.oStride, queries,
               dim, s.dOutput);
      const float scale = static_cast<float>(a.scale);
      for (int64_t i = 0; i < queries * dim; ++i) s.scaled[i] = s.queries[i] * scale;
      const int64_t statistic = query.row() * a.heads + head;
      scoreGradientsByKey(a, static_cast<const float*>(a.lse) + statistic,
                          static_cast<const float*>(a.delta) + statistic, queries, keys, mask, s);
      accumulateKeySide<Contiguous::Rows>(dim, queries, keys, diagonal, s.p, s.dOutput, dv, a.vStride);
      accumulateKeySide<Contiguous::Rows>(dim, queries, keys, diagonal, s.dScore, s.queries, dk, a.kStride);
  };
  sequences.forEachOfFamily(*key.sequence, [&](const Sequence& reader) {
    for (int64_t head = kvHead * group; head < (kvHead + 1) * group; ++head)
      for (int64_t tile = std::max(key.tile, reader.firstTile()); tile < reader.endTile(); ++tile) {
        const SequenceTile query{&reader, tile};
        if (firstVisibleKey(query.position(), a.window) >= key.position() + keys) break;
        addFrom(head, query);
      }
  });
}

}  // namespace

void attentionBackward(OpContext& context, const AttentionBackward& a) {
  requireFloat32(a.type, "attentionBackward");
  requireHeadDim(a.headDim, "attentionBackward");
  if (isBfloat16(productsOf(a))) return attentionBackwardBfloat16(context, a);
  const Sequences sequences("attentionBackward", a);
  const TileList queryTiles(sequences, a.heads), keyTiles(sequences, a.kvHeads);
  const bool worthSharing = queryTiles.pairs() * a.headDim * 5 / 2 > kSharedAttentionWork;
  if (!worthSharing || !separateIsFaster(sequences, a.kvHeads, cpu::pool(context).size())) {
    const std::vector<int64_t>& roots = sequences.roots();
    const int64_t together = headsTogether(a.kvHeads, a.headDim), groups = ceilDivide(a.kvHeads, together);
    forEachTask(context, static_cast<int64_t>(roots.size()) * groups, worthSharing, [&](int64_t index, int slot) {
      const Sequence& root = sequences[roots[static_cast<size_t>(index / groups)]];
      const int64_t first = index % groups * together, end = std::min(a.kvHeads, first + together);
      for (int64_t kvHead = first; kvHead < end; ++kvHead)
        jointBackward(a, sequences, root, kvHead, cpu::threadScratch(context, slot));
    });
    return;
  }
  cpu::pool(context).run(queryTiles.size(), [&](int64_t index, int slot) {
    const TileList::Item item = queryTiles[index];
    QueryScratch scratch(cpu::threadScratch(context, slot), a.headDim);
    queryTileBackward(a, sequences, item.head, item.tile, nullptr, scratch);
  });
  cpu::pool(context).run(keyTiles.size(), [&](int64_t index, int slot) {
    const TileList::Item item = keyTiles[index];
    keyTileBackward(a, sequences, item.head, item.tile, cpu::threadScratch(context, slot));
  });
}

}  // namespace rlhf::RLHF_ISA
