#pragma once
#include "ops/context.h"

namespace rlhf {

// A cache of keys and values is a pool of pages of kCachePageTokens tokens each. In a page the keys of a head lie transposed,
// [D][kCachePageTokens], so that scores are sums over D of whole vectors of tokens, and the values as they come, [kCachePageTokens][D]:
// kCache is [pages, G, D, kCachePageTokens], vCache [pages, G, kCachePageTokens, D]. Which pages hold a sequence, in order, a table tells;
// sequences that begin alike may share pages. Numbers in it are of `cacheType`: that of the op, or bfloat16.
inline constexpr int64_t kCachePageTokens = 32;

/// Pages that `tokens` tokens take.
constexpr int64_t cachePages(int64_t tokens) { return (tokens + kCachePageTokens - 1) / kCachePageTokens; }

/// Writes keys and values of `rows` tokens into a cache, each to a place of its own, rounded to its type.
struct KvAppend {
  DType type = DType::F32, cacheType = DType::F32;
  int64_t rows = 0, kvHeads = 0, headDim = 0, pages = 0, kStride = 0, vStride = 0;
  const int32_t* places = nullptr;  // [rows]: page · kCachePageTokens + place in the page
  const void* k = nullptr;          // [rows, G, D]
  const void* v = nullptr;          // [rows, G, D]
  void* kCache = nullptr;
  void* vCache = nullptr;

  template <class F> void fields(F&& f) {
    f("type", type), f("cacheType", cacheType);
    f("rows", rows), f("kvHeads", kvHeads), f("headDim", headDim), f("pages", pages);
    f("kStride", kStride), f("vStride", vStride), f("places", places), f("k", k), f("v", v);
    f("kCache", kCache), f("vCache", vCache);
  }
};

/// One query per sequence against its cached keys and values: o = softmax(scale·q·Kᵀ)·V over the first lengths[b] positions, or
/// over the last `window` of them. A row of o depends on its own sequence alone, bit for bit.
struct DecodeAttention {
  DType type = DType::F32, cacheType = DType::F32;
  int64_t rows = 0, heads = 0, kvHeads = 0, headDim = 0, pages = 0, tableStride = 0, qStride = 0, oStride = 0;
  int64_t window = 0;                // positions that a query sees, its own included; 0: all of them
  double scale = 0;
  const int32_t* tables = nullptr;   // [B, tableStride]: the first cachePages(lengths[b]) are the sequence's pages
  const int32_t* lengths = nullptr;  // [B], the current token included
  const void* q = nullptr;           // [B, H, D]
  const void* kCache = nullptr;
  const void* vCache = nullptr;
  void* o = nullptr;                 // [B, H, D]

  template <class F> void fields(F&& f) {
    f("type", type), f("cacheType", cacheType), f("rows", rows), f("heads", heads), f("kvHeads", kvHeads), f("headDim", headDim), f("pages", pages);
    f("tableStride", tableStride), f("qStride", qStride), f("oStride", oStride), f("window", window), f("scale", scale);
    f("tables", tables), f("lengths", lengths), f("q", q), f("kCache", kCache), f("vCache", vCache), f("o", o);
  }
};

/// Draws one token per row. In this order: repetition penalty (Keskar et al., 2019: positive logits of seen tokens are divided by it,
/// negative ones multiplied), forbidden tokens, temperature (0: the largest logit, ties to the smaller id), top-k, top-p (smallest
/// set of probability ≥ topP, the crossing token included), min-p (probability ≥ minP · largest), then a draw with Philox(seed, stream, position).
struct Sample {
  DType type = DType::F32;
  int64_t rows = 0, vocab = 0, forbiddenCount = 0;
  double temperature = 1, topP = 1, minP = 0, repetitionPenalty = 1;
  int64_t topK = 0;                             // 0: no limit
  uint64_t seed = 0;
  const int64_t* streams = nullptr;             // [B] one random stream per sequence
  const int32_t* positions = nullptr;           // [B] index of the draw in its stream
  const uint8_t* seen = nullptr;                // [B, V] (optional): 1 for tokens of prompt and answer so far
  const int32_t* forbidden = nullptr;           // [forbiddenCount] (optional)
  const uint8_t* forbid = nullptr;              // [B] (optional): 1 where the forbidden tokens are excluded
  const void* logits = nullptr;                 // [B, V], accumulator type
  int32_t* token = nullptr;                     // [B]
  void* logProb = nullptr;                      // [B], accumulator type: log of the probability with which it was drawn

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("vocab", vocab), f("forbiddenCount", forbiddenCount);
    f("temperature", temperature), f("topP", topP), f("minP", minP), f("repetitionPenalty", repetitionPenalty);
    f("topK", topK), f("seed", seed), f("streams", streams), f("positions", positions), f("seen", seen);
    f("forbidden", forbidden), f("forbid", forbid), f("logits", logits), f("token", token), f("logProb", logProb);
  }
};

}  // namespace rlhf
