#include <cmath>

#include "cpu/kernels/attention_bfloat16.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"

namespace rlhf::RLHF_ISA {
namespace {

/// Running softmax of a query tile: maximum and sum of every row so far, and the factor by which the last key
/// tile changed what had been summed before it.
struct RunningSoftmax {
  alignas(64) float maximum[kTile];
  alignas(64) float sum[kTile];
  alignas(64) float correction[kTile];
};

/// scores becomes exp(scores − maximum so far), 0 where the query does not see the key. A query that sees none yet
/// keeps the maximum −∞ and the sum 0.
void softmaxTile(int64_t queries, int64_t keys, const TileMask& mask, float* scores, RunningSoftmax& running) {
  const bool masked = mask.hidesAny(queries, keys);
  const int64_t lanes = roundUp(queries, kWidth);
  for (int64_t lane = 0; lane < lanes; lane += kWidth) {
    float* const column = scores + lane;
    const int64_t visible = visibleKeys(lane, keys, mask.diagonal());
    if (masked) {
      const IntVec query = laneIndex() + static_cast<int>(lane);
      for (int64_t key = mask.firstHidden(lane); key < visible; ++key)
        store(column + key * kTile, mask.hidden(query, IntVec{} + static_cast<int>(key))
                                        ? set1(-INFINITY)
                                        : load(column + key * kTile));
    }
    const Vec before = load(running.maximum + lane);
    Vec best[4] = {before, before, before, before};
    int64_t key = 0;
    for (; key + 4 <= visible; key += 4)
      for (int i = 0; i < 4; ++i) best[i] = max(best[i], load(column + (key + i) * kTile));
    for (; key < visible; ++key) best[0] = max(best[0], load(column + key * kTile));
    const Vec now = max(max(best[0], best[1]), max(best[2], best[3]));

    const Vec origin = now == -INFINITY ? Vec{} : now;  // −∞ − (−∞) is no number
    const Vec correction = exp(before - origin);
    Vec total = load(running.sum + lane) * correction;
    for (key = 0; key < visible; ++key) {
      const Vec p = exp(load(column + key * kTile) - origin);
      store(column + key * kTile, p);
      total += p;
    }
    store(running.maximum + lane, now);
    store(running.sum + lane, total);
    store(running.correction + lane, correction);
  }
}

/// output[query] = correction · output[query] + P·V.
void accumulateValues(int64_t queries, int64_t keys, int64_t headDim, bool diagonal, bool first,
                      const float* values, const float* p, const RunningSoftmax& running, float* output) {
  if (!first)
    for (int64_t query = 0; query < queries; ++query) {
      const float correction = running.correction[query];
      if (correction == 1.0f) continue;
      float* row = output + query * headDim;
      forEachVector(headDim,
                    [&](int64_t d, auto lanes) { lanes.store(row + d, lanes.load(row + d) * correction); });
    }
  for (int64_t query = 0; query < (diagonal ? queries : 1); query += kTileRows) {
    multiply<Contiguous::Rows>(diagonal ? std::min<int64_t>(kTileRows, queries - query) : queries, headDim,
                               {.depth = diagonal ? std::min<int64_t>(keys, query + kTileRows) : keys,
                                .a = p + query,
                                .aStride = kTile,
                                .b = values,
                                .bStride = headDim,
                                .c = output + query * headDim,
                                .cStride = headDim,
                                .accumulate = !first});
  }
}

void forwardTile(const AttentionForward& a, int64_t head, const SequenceTile& tile, char* memory) {
  const int64_t kvHead = head * a.kvHeads / a.heads, dim = a.headDim, queries = tile.rows();
  const int64_t lanes = roundUp(queries, kWidth), firstTile = firstVisibleKey(tile.position(), a.window) / kTile;
  ScratchFloats scratch(memory);
  float* const queriesT = scratch.take(dim * kTile);
  float* const scores = scratch.take(kTile * kTile);
  float* const valueCopy = scratch.take(kTile * dim);
  float* const output = scratch.take(kTile * dim);

  const float* q = static_cast<const float*>(a.q) + tile.row() * a.qStride + head * dim;
  const float* const k = static_cast<const float*>(a.k) + kvHead * dim;
  const float* const v = static_cast<const float*>(a.v) + kvHead * dim;
  prefetchRows(q, a.qStride, queries, dim);
  transposeScaled(q, a.qStride, queries, dim, static_cast<float>(a.scale), queriesT, kTile);
  RunningSoftmax running;
  std::fill_n(running.maximum, kTile, -INFINITY);
  std::fill_n(running.sum, kTile, 0.0f);

  for (int64_t keyTile = firstTile; keyTile <= tile.tile; ++keyTile) {
    const KeyTile key(*tile.sequence, keyTile);
    const TileMask mask{tile.position() - key.position, a.window};
    key.forEachRun([&](int64_t row, int64_t first, int64_t rows) {
      multiplyKeyRows(k + row * a.kStride, a.kStride, rows, dim, queriesT, lanes, mask.diagonal(),
                      scores + first * kTile);
    });
    softmaxTile(queries, key.rows, mask, scores, running);
    key.forEachRun([&](int64_t row, int64_t first, int64_t rows) {
      copyRows(v + row * a.vStride, a.vStride, rows, dim, valueCopy + first * dim);
    });
    accumulateValues(queries, key.rows, dim, mask.diagonal(), keyTile == firstTile, valueCopy, scores, running,
                     output);
  }

  float* const lse = static_cast<float*>(a.lse) + tile.row() * a.heads + head;
  for (int64_t i = 0; i < queries; ++i) {
    const float inverse = 1.0f / running.sum[i];
    float* const o = static_cast<float*>(a.o) + (tile.row() + i) * a.oStride + head * dim;
    const float* const row = output + i * dim;
    forEachVector(dim, [&](int64_t d, auto part) { part.store(o + d, part.load(row + d) * inverse); });
    lse[i * a.heads] = running.maximum[i] + std::log(running.sum[i]);
  }
}

}  // namespace

void attentionForward(OpContext& context, const AttentionForward& a) {
  requireFloat32(a.type, "attentionForward");
  requireHeadDim(a.headDim, "attentionForward");
  if (isBfloat16(productsOf(a))) return attentionForwardBfloat16(context, a);
  const Sequences sequences("attentionForward", a);
  const TileList tiles(sequences, a.heads);
  const bool worthSharing = tiles.pairs() * a.headDim > kSharedAttentionWork;
  const int64_t together = headsTogether(a.heads, a.headDim);
  forEachTask(context, tiles.groups(together), worthSharing, [&](int64_t index, int slot) {
    const TileList::Item first = tiles.group(index, together);
    const int64_t end = std::min(a.heads, first.head + together);
    for (int64_t head = first.head; head < end; ++head) forwardTile(a, head, first.tile, cpu::threadScratch(context, slot));
  });
}

}  // namespace rlhf::RLHF_ISA
