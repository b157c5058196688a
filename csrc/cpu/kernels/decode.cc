#include <cmath>
#include <cstring>

#include "cpu/kernels/attention_tiles.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"
#include "cpu/kernels/widen.h"
#include "cpu/prefetch.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t kPage = kCachePageTokens;
static_assert(kPage % kWidth == 0);

/// Positions whose scores are taken before any value is read: long enough that keys, exponentials and values each are read in one go.
constexpr int64_t kBlockTokens = 1024;

constexpr int64_t kTasksPerThread = 8;

/// scores becomes exp(scores − maximum so far) over whole vectors; returns the factor by which earlier sums shrink.
float softmaxRow(int64_t count, float* scores, float& runningMaximum, float& runningSum) {
  Vec best = load(scores);
  for (int64_t i = kWidth; i < count; i += kWidth) best = max(best, load(scores + i));
  const float before = runningMaximum;
  runningMaximum = std::max(before, maximum(best));
  const float correction = std::exp(before - runningMaximum);
  Vec total = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec p = exp(load(scores + i) - runningMaximum);
    store(scores + i, p);
    total += p;
  }
  runningSum = runningSum * correction + sum(total);
  return correction;
}

/// Key/value heads [firstHead, endHead) of one sequence, with all query heads that share them. A page holds its heads one after the other, so pages are gone
/// through head by head, and the cache is streamed once, in the order in which it lies.
template <class Cache>
class DecodeHeads {
 public:
  /// Of so many key/value heads.
  static int64_t scratchBytes(const DecodeAttention& a, int64_t kvHeads) {
    const int64_t heads = a.heads / a.kvHeads * kvHeads;
    return (heads * (2 * a.headDim + kScoresStride + 2) + 5 * 16) * static_cast<int64_t>(sizeof(float));
  }

  DecodeHeads(const DecodeAttention& a, int64_t row, int64_t firstHead, int64_t endHead, char* memory)
      : a_(a), table_(a.tables + row * a.tableStride), firstHead_(firstHead), kvHeads_(endHead - firstHead), group_(a.heads / a.kvHeads),
        length_(a.lengths[row]) {
    ScratchFloats scratch(memory);
    const int64_t heads = kvHeads_ * group_, width = heads * a.headDim;
    query_ = scratch.take(width);
    output_ = scratch.take(width);
    scores_ = scratch.take(heads * kScoresStride);
    maxima_ = scratch.take(heads);
    sums_ = scratch.take(heads);
    const float* q = static_cast<const float*>(a.q) + row * a.qStride + firstHead * group_ * a.headDim;
    const auto scale = static_cast<float>(a.scale);
    forEachVector(width, [&](int64_t i, auto lanes) { lanes.store(query_ + i, lanes.load(q + i) * scale); });
    std::fill_n(output_, width, 0.0f);
    std::fill_n(maxima_, heads, -INFINITY);
    std::fill_n(sums_, heads, 0.0f);
  }

  void run(float* o) {
    const int64_t first = firstVisibleKey(length_ - 1, a_.window);
    for (int64_t begin = first / kPage * kPage; begin < length_; begin += kBlockTokens)
      addBlock(begin, std::max(first, begin), std::min(begin + kBlockTokens, length_));
    for (int64_t h = 0; h < kvHeads_ * group_; ++h) {
      const float inverse = 1.0f / sums_[h];
      const float* const sums = output_ + h * a_.headDim;
      forEachVector(a_.headDim, [&](int64_t d, auto lanes) { lanes.store(o + h * a_.headDim + d, lanes.load(sums + d) * inverse); });
    }
  }

 private:
  using Element = typename Cache::Element;

  // Numbers that are multiplied while as many behind them are on their way: from a kilobyte or two ahead.
  static constexpr int64_t kPieceElements = 512;
  // Scores of neighbouring heads do not lie a multiple of 4 KB apart.
  static constexpr int64_t kScoresStride = kBlockTokens + 16;

  /// Positions [first, end), of pages that begin at `begin`.
  void addBlock(int64_t begin, int64_t first, int64_t end) {
    for (int64_t at = begin; at < end; at += kPage)
      for (int64_t h = 0; h < kvHeads_; ++h) addScores(h, at, std::min(at + kPage, end), begin, behind(a_.kCache, h, at, end));
    for (int64_t h = 0; h < kvHeads_ * group_; ++h) takeExponentials(h, first - begin, end - begin);
    for (int64_t at = begin; at < end; at += kPage)
      for (int64_t h = 0; h < kvHeads_; ++h) addValues(h, std::max(at, first), std::min(at + kPage, end), begin, behind(a_.vCache, h, at, end));
  }

  /// Of a page's positions [from, to), in a block that begins at `begin`. `next` is read after them.
  void addScores(int64_t head, int64_t from, int64_t to, int64_t begin, const Element* next) {
    const int64_t dim = a_.headDim;
    multiplyRows(roundUp(to - from, kWidth),
                 {.depth = dim,
                  .a = query_ + head * group_ * dim,
                  .aStride = dim,
                  .b = page(a_.kCache, head, from),
                  .bStride = kPage,
                  .c = scores_ + head * group_ * kScoresStride + (from - begin),
                  .cStride = kScoresStride,
                  .accumulate = false},
                 next);
  }

  void takeExponentials(int64_t queryHead, int64_t first, int64_t end) {
    const int64_t padded = roundUp(end, kWidth);
    float* const scores = scores_ + queryHead * kScoresStride;
    std::fill(scores, scores + first, -INFINITY);
    std::fill(scores + end, scores + padded, -INFINITY);
    const float correction = softmaxRow(padded, scores, maxima_[queryHead], sums_[queryHead]);
    float* const sums = output_ + queryHead * a_.headDim;
    forEachVector(a_.headDim, [&](int64_t d, auto lanes) { lanes.store(sums + d, lanes.load(sums + d) * correction); });
  }

  /// The same of values.
  void addValues(int64_t head, int64_t from, int64_t to, int64_t begin, const Element* next) {
    const int64_t dim = a_.headDim;
    multiplyRows(dim,
                 {.depth = to - from,
                  .a = scores_ + head * group_ * kScoresStride + (from - begin),
                  .aStride = kScoresStride,
                  .b = page(a_.vCache, head, from) + from % kPage * dim,
                  .bStride = dim,
                  .c = output_ + head * group_ * dim,
                  .cStride = dim,
                  .accumulate = true},
                 next);
  }

  /// All query heads of the group times rows of the cache, some at a time, while the next ones or those at `next` are asked for.
  void multiplyRows(int64_t columns, TileProductOf<Cache> product, const Element* next) const {
    const int64_t rows = product.depth, most = std::max<int64_t>(1, kPieceElements / product.bStride);
    for (int64_t row = 0; row < rows; row += most) {
      const Element* const ahead = product.b + most * product.bStride;
      fetch(row + most < rows ? ahead : next, std::min(most, rows) * product.bStride);
      product.depth = std::min(most, rows - row);
      multiply<Contiguous::Depth>(group_, columns, product);
      product.a += most;
      product.b = ahead;
      product.accumulate = true;
    }
  }

  RLHF_PREFETCH static void fetch(const Element* numbers, int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(Element);
    for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(numbers + i);
  }

  /// What is read behind a head's part of a page at position `at`: the next head's, or the next page's.
  const Element* behind(const void* cache, int64_t head, int64_t at, int64_t end) const {
    const bool turns = head + 1 == kvHeads_ && at + kPage < end;
    return page(cache, turns ? 0 : head + 1, turns ? at + kPage : at);
  }
  const Element* page(const void* cache, int64_t head, int64_t position) const {
    return static_cast<const Element*>(cache) + (table_[position / kPage] * a_.kvHeads + firstHead_ + head) * a_.headDim * kPage;
  }

  const DecodeAttention& a_;
  const int32_t* table_;
  int64_t firstHead_, kvHeads_, group_, length_;
  float *query_, *output_, *scores_, *maxima_, *sums_;
};

/// Keys of tokens whose places follow one another in a page: each vector of numbers of up to kWidth tokens is turned.
template <class Cache>
void appendKeys(const float* k, int64_t stride, int64_t tokens, int64_t dim, typename Cache::Element* keys) {
  for (int64_t t = 0; t < tokens; t += kWidth) {
    const int height = static_cast<int>(std::min<int64_t>(kWidth, tokens - t));
    for (int64_t d = 0; d < dim; d += kWidth) {
      const int width = static_cast<int>(std::min<int64_t>(kWidth, dim - d));
      if (height == 1) {
        typename Cache::Element numbers[kWidth];
        Cache::storePartial(numbers, loadPartial(k + t * stride + d, width), width);
        for (int i = 0; i < width; ++i) keys[(d + i) * kPage + t] = numbers[i];
        continue;
      }
      Vec block[kWidth];
      for (int i = 0; i < kWidth; ++i) block[i] = i < height ? loadPartial(k + (t + i) * stride + d, width) : Vec{};
      transpose(block);
      for (int i = 0; i < width; ++i) Cache::storePartial(keys + (d + i) * kPage + t, block[i], height);
    }
  }
}

/// A head of rows [begin, end), whose places follow one another in a page.
template <class Cache>
void appendRun(const KvAppend& a, int64_t kvHead, int64_t begin, int64_t end) {
  using Element = typename Cache::Element;
  const int64_t page = a.places[begin] / kPage, token = a.places[begin] % kPage;
  const int64_t block = (page * a.kvHeads + kvHead) * a.headDim * kPage;
  appendKeys<Cache>(static_cast<const float*>(a.k) + begin * a.kStride + kvHead * a.headDim, a.kStride, end - begin, a.headDim,
                    static_cast<Element*>(a.kCache) + block + token);
  for (int64_t n = begin; n < end; ++n) {
    const float* const from = static_cast<const float*>(a.v) + n * a.vStride + kvHead * a.headDim;
    Element* const to = static_cast<Element*>(a.vCache) + block + (token + n - begin) * a.headDim;
    for (int64_t d = 0; d < a.headDim; d += kWidth) {
      const int width = static_cast<int>(std::min<int64_t>(kWidth, a.headDim - d));
      Cache::storePartial(to + d, loadPartial(from + d, width), width);
    }
  }
}

/// Whether a cache is in bfloat16 or in float32. Throws for other types.
bool isBfloat16Cache(DType type, const char* op) {
  if (type == DType::F32 || type == DType::BF16) return type == DType::BF16;
  throw Error(code::kUnsupported, format("%s: a cache of %s is not supported on the CPU, use float32 or bfloat16", op, dtypeName(type)));
}

/// Key/value heads [begin, end) of all sequences, counted through, up to `most` of a sequence at a time.
template <class Cache>
void decodeHeads(const DecodeAttention& a, int64_t begin, int64_t end, int64_t most, char* scratch) {
  while (begin < end) {
    const int64_t row = begin / a.kvHeads, first = begin % a.kvHeads, count = std::min({most, end - begin, a.kvHeads - first});
    float* const o = static_cast<float*>(a.o) + row * a.oStride + first * (a.heads / a.kvHeads) * a.headDim;
    DecodeHeads<Cache>(a, row, first, first + count, scratch).run(o);
    begin += count;
  }
}

/// Key/value heads for which a thread's scratch memory has room.
int64_t mostHeads(const DecodeAttention& a) {
  const int64_t none = DecodeHeads<Float32>::scratchBytes(a, 0), one = DecodeHeads<Float32>::scratchBytes(a, 1);
  const int64_t most = (static_cast<int64_t>(cpu::kScratchPerThread) - none) / (one - none);
  if (most < 1) throw Error(code::kUnsupported, "decodeAttention: too many query heads per key/value head for the CPU");
  return most;
}

}  // namespace

void kvAppend(OpContext& context, const KvAppend& a) {
  requireFloat32(a.type, "kvAppend");
  const auto append = isBfloat16Cache(a.cacheType, "kvAppend") ? appendRun<Bfloat16> : appendRun<Float32>;
  for (int64_t n = 0; n < a.rows; ++n) requireIndex("kvAppend", "places", n, a.places[n], a.pages * kPage);
  constexpr int64_t kRowsPerTask = 8 * kPage;
  // Each number of a token's key goes to a line of its own in its page.
  constexpr int64_t kWorkPerElement = 8;
  const int64_t ranges = ceilDivide(a.rows, kRowsPerTask);
  const bool worthSharing = kWorkPerElement * a.rows * a.kvHeads * a.headDim >= kElementsPerTask;
  forEachTask(context, ranges * a.kvHeads, worthSharing, [&](int64_t task, int) {
    const int64_t kvHead = task % a.kvHeads, begin = task / a.kvHeads * kRowsPerTask, end = std::min(a.rows, begin + kRowsPerTask);
    for (int64_t n = begin; n < end;) {
      int64_t next = n + 1;
      while (next < end && a.places[next] == a.places[next - 1] + 1 && a.places[next] % kPage != 0) ++next;
      append(a, kvHead, n, next);
      n = next;
    }
  });
}

void decodeAttention(OpContext& context, const DecodeAttention& a) {
  requireFloat32(a.type, "decodeAttention");
  requireHeadDim(a.headDim, "decodeAttention");
  const auto decode = isBfloat16Cache(a.cacheType, "decodeAttention") ? decodeHeads<Bfloat16> : decodeHeads<Float32>;
  const int64_t most = mostHeads(a);
  int64_t positions = 0;
  for (int64_t n = 0; n < a.rows; ++n) {
    requireIndex("decodeAttention", "lengths", n, a.lengths[n] - int64_t{1}, a.tableStride * kPage);
    for (int64_t p = n * a.tableStride; p < n * a.tableStride + cachePages(a.lengths[n]); ++p)
      requireIndex("decodeAttention", "tables", p, a.tables[p], a.pages);
    positions += a.window > 0 ? std::min<int64_t>(a.lengths[n], a.window) : a.lengths[n];
  }
  const bool worthSharing = positions * a.heads * a.headDim > kElementsPerTask;
  const int64_t heads = a.rows * a.kvHeads, tasks = worthSharing ? std::min<int64_t>(heads, kTasksPerThread * cpu::pool(context).size()) : 1;
  forEachTask(context, tasks, worthSharing, [&](int64_t task, int slot) {
    decode(a, heads * task / tasks, heads * (task + 1) / tasks, most, cpu::threadScratch(context, slot));
  });
}

}  // namespace rlhf::RLHF_ISA
