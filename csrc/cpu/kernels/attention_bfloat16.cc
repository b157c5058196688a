#include "cpu/kernels/attention_bfloat16.h"

#include <cmath>
#include <numbers>

// Attention's forward pass with products in bfloat16: scores = K·Qᵀ, weights = 2^(scale·log₂e·scores − m), outputᵀ = Vᵀ·weights. m is
// the row's maximum so far, rounded up to a whole number: what has been summed before there is a larger one is multiplied by a power of
// two, which changes no bit of it, and weights are rounded as if the largest score had been known from the start.

namespace rlhf::RLHF_ISA {
namespace {

/// A tile of keys and their values, packed.
struct KeyFactors {
  Factor keys, values;  // A: [keys][D], [D][keys]
};

/// The packed tiles of a sequence's keys for one key/value head, as many as there is room for: a tile is packed where it is first read,
/// and again where another one has taken its place.
class HeldKeys {
 public:
  HeldKeys(const AttentionForward& a, const TileProducts& products, int64_t kvHead, int64_t tiles, ScratchFloats& scratch)
      : products_(products), dim_(a.headDim), kStride_(a.kStride), vStride_(a.vStride),
        k_(static_cast<const float*>(a.k) + kvHead * dim_), v_(static_cast<const float*>(a.v) + kvHead * dim_),
        copy_(scratch.take(kTile * dim_)) {
    const int64_t each = products.factorFloats(kTile, dim_) + products.factorFloats(dim_, kTile);
    held_.resize(static_cast<size_t>(std::clamp<int64_t>(scratch.left() / each, 1, tiles)));
    for (Held& held : held_) held.factors = {products.take(scratch, kTile, dim_), products.take(scratch, dim_, kTile)};
  }

  const KeyFactors& operator[](const KeyTile& key) {
    const int64_t tile = key.position / kTile;
    Held& held = held_[static_cast<size_t>(tile) % held_.size()];
    if (held.tile == tile) return held.factors;
    held.tile = tile;
    together(k_, kStride_, key, [&](const float* rows, int64_t stride) {
      products_.packA({rows, stride, 1}, key.rows, dim_, held.factors.keys);
    });
    together(v_, vStride_, key, [&](const float* rows, int64_t stride) {
      products_.packA({rows, 1, stride}, dim_, key.rows, held.factors.values);
    });
    return held.factors;
  }

 private:
  struct Held {
    int64_t tile = -1;
    KeyFactors factors;
  };

  /// Hands a tile's rows on: a copy of them where some are the parent's and some the sequence's own.
  template <class Pack>
  void together(const float* array, int64_t stride, const KeyTile& key, Pack&& pack) {
    if (key.inherited == 0 || key.inherited == key.rows) {
      pack(array + (key.inherited > 0 ? key.parentRow : key.ownRow) * stride, stride);
      return;
    }
    key.forEachRun([&](int64_t row, int64_t first, int64_t rows) {
      copyRows(array + row * stride, stride, rows, dim_, copy_ + first * dim_);
    });
    pack(copy_, dim_);
  }

  const TileProducts& products_;
  int64_t dim_, kStride_, vStride_;
  const float *k_, *v_;
  float* copy_;
  std::vector<Held> held_;
};

/// The largest of a vector of queries' scores, the keys' from `first` to `end`; −∞ where there is none.
Vec largestScore(const float* column, int64_t end) {
  Vec best[4];
  for (Vec& each : best) each = set1(-INFINITY);
  int64_t key = 0;
  for (; key + 4 <= end; key += 4)
    for (int i = 0; i < 4; ++i) best[i] = max(best[i], load(column + (key + i) * kBfloat16Tile));
  for (; key < end; ++key) best[0] = max(best[0], load(column + key * kBfloat16Tile));
  return max(max(best[0], best[1]), max(best[2], best[3]));
}

void hideScores(const TileMask& mask, int64_t lane, int64_t end, float* column) {
  const IntVec query = laneIndex() + static_cast<int>(lane);
  for (int64_t key = mask.firstHidden(lane); key < end; ++key) {
    float* const score = column + key * kBfloat16Tile;
    store(score, mask.hidden(query, IntVec{} + static_cast<int>(key)) ? set1(-INFINITY) : load(score));
  }
}

/// Stores the weights of keys [0, end) and zeros for the rest of the last step; returns total + their sum.
template <bool kSplit>
Vec weighKeys(const float* column, int64_t end, int64_t steps, Vec factor, Vec origin, const Factor& weights, int64_t lane, Vec total) {
  using Parts = RoundedParts<kSplit>;
  const auto weigh = [&](int64_t key) { return exp2(load(column + key * kBfloat16Tile) * factor - origin); };
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t first = step * kBfloat16Tile, last = first + kBfloat16Tile, present = std::min(end, last);
    uint16_t* pairs = pairsOf<kSplit>(weights, lane, first);
    int64_t key = first;
    for (; key + 2 <= present; key += 2, pairs += kBfloat16Tile) {
      const Vec earlier = weigh(key), later = weigh(key + 1);
      total += earlier;
      total += later;
      storePair<kSplit>(pairs, Parts::ofComputed(earlier), Parts::ofComputed(later));
    }
    if (key < present) {
      const Vec single = weigh(key);
      total += single;
      storePair<kSplit>(pairs, Parts::ofComputed(single), Parts::zero());
      key += 2, pairs += kBfloat16Tile;
    }
    for (; key < last; key += 2, pairs += kBfloat16Tile) storePair<kSplit>(pairs, Parts::zero(), Parts::zero());
  }
  return total;
}

/// Multiplies columns by powers of two, most of which are 1.
void scaleColumns(float* column, int64_t rows, Vec factor) {
  bool changes = false;
  for (int lane = 0; lane < kWidth; ++lane) changes |= factor[lane] != 1.0f;
  if (!changes) return;
  for (int64_t row = 0; row < rows; ++row) store(column + row * kBfloat16Tile, load(column + row * kBfloat16Tile) * factor);
}

/// One query tile of one head at a time.
class QueryPass {
 public:
  QueryPass(const AttentionForward& a, const TileProducts& products, ScratchFloats& scratch)
      : a_(a), products_(products), dim_(a.headDim), factor_(static_cast<float>(a.scale * std::numbers::log2e)),
        queries_(products.take(scratch, kTile, dim_)), weights_(products.take(scratch, kTile, kTile)),
        scores_(scratch.take(resultFloats(kTile, kTile))), output_(scratch.take(resultFloats(dim_, kTile))) {}

  template <bool kSplit>
  void run(const SequenceTile& tile, int64_t head, HeldKeys& keys) {
    const int64_t firstTile = firstVisibleKey(tile.position(), a_.window) / kTile;
    begin(tile, head);
    for (int64_t keyTile = firstTile; keyTile <= tile.tile; ++keyTile) {
      const KeyTile key(*tile.sequence, keyTile);
      attend<kSplit>(keys[key], key.rows, {tile.position() - key.position, a_.window}, keyTile == firstTile);
    }
    finish(tile, head);
  }

 private:
  void begin(const SequenceTile& tile, int64_t head) {
    const float* const q = static_cast<const float*>(a_.q) + tile.row() * a_.qStride + head * dim_;
    count_ = tile.rows();
    products_.packB({q, 1, a_.qStride}, dim_, count_, queries_);
    std::fill_n(origin_, kTile, -INFINITY);
    std::fill_n(sum_, kTile, 0.0f);
  }

  template <bool kSplit>
  void attend(const KeyFactors& key, int64_t keys, const TileMask& mask, bool first) {
    multiplyScores(products_, key.keys, keys, queries_, count_, mask.diagonal(), scores_);
    weights_.steps = panelsOf(keys);
    for (int64_t lane = 0; lane < count_; lane += kWidth) weigh<kSplit>(keys, mask, lane, first);
    products_.multiply(key.values, dim_, weights_, count_, output_, !first,
                       [&](int64_t, int64_t panel) { return keySteps(panel, keys, mask.diagonal()); });
  }

  template <bool kSplit>
  void weigh(int64_t keys, const TileMask& mask, int64_t lane, bool first) {
    const int64_t steps = keySteps(lane / kBfloat16Tile, keys, mask.diagonal()).end, end = std::min(keys, steps * kBfloat16Tile);
    float* const column = scores_ + columnOffset(lane, keys);
    if (mask.hidesAny(count_, keys)) hideScores(mask, lane, end, column);
    const Vec before = load(origin_ + lane), now = max(before, ceil(largestScore(column, end) * factor_));
    const Vec origin = now == -INFINITY ? Vec{} : now;  // −∞ − (−∞) is no number
    const Vec shrink = exp2(before - origin);
    if (!first) scaleColumns(output_ + columnOffset(lane, dim_), dim_, shrink);
    store(origin_ + lane, now);
    const Vec total = load(sum_ + lane) * shrink;
    store(sum_ + lane, weighKeys<kSplit>(column, end, steps, set1(factor_), origin, weights_, lane, total));
  }

  void finish(const SequenceTile& tile, int64_t head) const {
    float* const o = static_cast<float*>(a_.o) + tile.row() * a_.oStride + head * dim_;
    for (int64_t lane = 0; lane < count_; lane += kWidth)
      storeColumns(output_ + columnOffset(lane, dim_), dim_, static_cast<int>(std::min<int64_t>(kWidth, count_ - lane)),
                   1.0f / load(sum_ + lane), o + lane * a_.oStride, a_.oStride);
    float* const lse = static_cast<float*>(a_.lse) + tile.row() * a_.heads + head;
    for (int64_t i = 0; i < count_; ++i)
      lse[i * a_.heads] = static_cast<float>(origin_[i] * std::numbers::ln2 + std::log(sum_[i]));
  }

  const AttentionForward& a_;
  const TileProducts& products_;
  int64_t dim_;
  float factor_;              // scores times it are powers of two's exponents
  Factor queries_, weights_;  // B: [D][queries], [keys][queries]
  float* scores_;             // [keys][queries]
  float* output_;             // [D][queries], to be divided by the weights' sum
  int64_t count_ = 0;
  alignas(64) float origin_[kTile];
  alignas(64) float sum_[kTile];
};

template <bool kSplit>
void runTask(const AttentionForward& a, const TileProducts& products, const TileRange& task, char* memory) {
  const int64_t group = a.heads / a.kvHeads;
  ScratchFloats scratch(memory);
  QueryPass pass(a, products, scratch);
  const int64_t firstKeyTile = firstVisibleKey(SequenceTile{task.sequence, task.firstTile}.position(), a.window) / kTile;
  HeldKeys keys(a, products, task.head, task.endTile - firstKeyTile, scratch);
  for (int64_t head = task.head * group; head < (task.head + 1) * group; ++head)
    for (int64_t tile = task.firstTile; tile < task.endTile; ++tile) pass.run<kSplit>({task.sequence, tile}, head, keys);
}

}  // namespace

void attentionForwardBfloat16(OpContext& context, const AttentionForward& a) {
  const Sequences sequences("attentionForward", a);
  const TileList tiles(sequences, a.kvHeads);
  const bool worthSharing = tiles.pairs() * (a.heads / a.kvHeads) * a.headDim > kSharedAttentionWork;
  const int64_t tilesPerTask = tilesTogether(tiles.size(), worthSharing ? cpu::pool(context).size() : 1);
  const std::vector<TileRange> tasks = tileRanges(sequences, a.kvHeads, tilesPerTask);
  const TileProducts products(a.compute);
  forEachTask(context, static_cast<int64_t>(tasks.size()), worthSharing, [&](int64_t index, int slot) {
    products.begin();
    (products.split() ? runTask<true> : runTask<false>)(a, products, tasks[static_cast<size_t>(index)], cpu::threadScratch(context, slot));
    products.end();
  });
}

}  // namespace rlhf::RLHF_ISA
