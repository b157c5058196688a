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

/// Asks for what will be read next: other heads lie between a head's parts of two pages, where the hardware does not follow.
RLHF_PREFETCH inline void fetch(const void* block, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(block) + i);
}

/// All query heads of one sequence that share a key/value head, so that its cache is streamed once.
template <class Cache>
class DecodeGroup {
 public:
  static int64_t scratchFloats(const DecodeAttention& a) {
    return a.heads / a.kvHeads * (2 * a.headDim + kBlockTokens + 2) + a.headDim * kPage + 7 * 16;
  }

  DecodeGroup(const DecodeAttention& a, int64_t row, int64_t kvHead, char* memory)
      : a_(a), table_(a.tables + row * a.tableStride), kvHead_(kvHead), group_(a.heads / a.kvHeads), length_(a.lengths[row]) {
    ScratchFloats scratch(memory);
    query_ = scratch.take(group_ * a.headDim);
    output_ = scratch.take(group_ * a.headDim);
    scores_ = scratch.take(group_ * kBlockTokens);
    widened_ = scratch.take(a.headDim * kPage);
    maxima_ = scratch.take(group_);
    sums_ = scratch.take(group_);
    const float* q = static_cast<const float*>(a.q) + row * a.qStride + kvHead * group_ * a.headDim;
    const auto scale = static_cast<float>(a.scale);
    forEachVector(group_ * a.headDim, [&](int64_t i, auto lanes) { lanes.store(query_ + i, lanes.load(q + i) * scale); });
    std::fill_n(output_, group_ * a.headDim, 0.0f);
    std::fill_n(maxima_, group_, -INFINITY);
    std::fill_n(sums_, group_, 0.0f);
  }

  void run(float* o) {
    const int64_t first = firstVisibleKey(length_ - 1, a_.window);
    for (int64_t begin = first / kPage * kPage; begin < length_; begin += kBlockTokens)
      addBlock(begin, std::max(first, begin), std::min(begin + kBlockTokens, length_));
    for (int64_t h = 0; h < group_; ++h) {
      const float inverse = 1.0f / sums_[h];
      const float* const sums = output_ + h * a_.headDim;
      forEachVector(a_.headDim, [&](int64_t d, auto lanes) { lanes.store(o + h * a_.headDim + d, lanes.load(sums + d) * inverse); });
    }
  }

 private:
  /// Positions [first, end), of pages that begin at `begin`.
  void addBlock(int64_t begin, int64_t first, int64_t end) {
    const int64_t dim = a_.headDim, padded = roundUp(end - begin, kWidth);
    for (int64_t at = begin; at < end; at += kPage) {
      multiply<Contiguous::Depth>(group_, roundUp(std::min(kPage, end - at), kWidth),
                                  {.depth = dim,
                                   .a = query_,
                                   .aStride = dim,
                                   .b = widen(keys(at), dim * kPage, at + kPage < end ? keys(at + kPage) : nullptr),
                                   .bStride = kPage,
                                   .c = scores_ + (at - begin),
                                   .cStride = kBlockTokens,
                                   .accumulate = false});
    }
    fetch(values(begin), blockBytes());
    for (int64_t h = 0; h < group_; ++h) {
      float* const scores = scores_ + h * kBlockTokens;
      std::fill(scores, scores + (first - begin), -INFINITY);
      std::fill(scores + (end - begin), scores + padded, -INFINITY);
      const float correction = softmaxRow(padded, scores, maxima_[h], sums_[h]);
      float* const sums = output_ + h * dim;
      forEachVector(dim, [&](int64_t d, auto lanes) { lanes.store(sums + d, lanes.load(sums + d) * correction); });
    }
    for (int64_t at = begin; at < end; at += kPage) {
      const int64_t from = std::max(at, first), to = std::min(at + kPage, end);
      multiply<Contiguous::Depth>(group_, dim,
                                  {.depth = to - from,
                                   .a = scores_ + (from - begin),
                                   .aStride = kBlockTokens,
                                   .b = widen(values(at) + (from - at) * dim, (to - from) * dim, at + kPage < end ? values(at + kPage) : nullptr),
                                   .bStride = dim,
                                   .c = output_,
                                   .cStride = dim,
                                   .accumulate = true});
    }
  }

  using Element = typename Cache::Element;

  /// Numbers of a page as float32: as they lie, or in memory of the thread that the next call overwrites. `next`, if any, is asked for
  /// meanwhile.
  const float* widen(const Element* block, int64_t count, const Element* next) const {
    if constexpr (std::is_same_v<Element, float>) {
      if (next) fetch(next, blockBytes());
      return block;
    } else {
      int64_t i = 0;
      for (; i + kWidth <= count; i += kWidth) {
        if (next) __builtin_prefetch(next + i);
        store(widened_ + i, Cache::load(block + i));
      }
      if (i < count) store(widened_ + i, Cache::loadPartial(block + i, static_cast<int>(count - i)));
      return widened_;
    }
  }

  int64_t blockBytes() const { return a_.headDim * kPage * static_cast<int64_t>(sizeof(Element)); }
  const Element* keys(int64_t position) const { return static_cast<const Element*>(a_.kCache) + blockOf(position); }
  const Element* values(int64_t position) const { return static_cast<const Element*>(a_.vCache) + blockOf(position); }
  int64_t blockOf(int64_t position) const {
    return (table_[position / kPage] * a_.kvHeads + kvHead_) * a_.headDim * kPage;
  }

  const DecodeAttention& a_;
  const int32_t* table_;
  int64_t kvHead_, group_, length_;
  float *query_, *output_, *scores_, *widened_, *maxima_, *sums_;
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

template <class Cache>
void decodeRow(const DecodeAttention& a, int64_t row, int64_t kvHead, char* scratch) {
  float* const o = static_cast<float*>(a.o) + row * a.oStride + kvHead * (a.heads / a.kvHeads) * a.headDim;
  DecodeGroup<Cache>(a, row, kvHead, scratch).run(o);
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
  const auto decode = isBfloat16Cache(a.cacheType, "decodeAttention") ? decodeRow<Bfloat16> : decodeRow<Float32>;
  if (DecodeGroup<Float32>::scratchFloats(a) * static_cast<int64_t>(sizeof(float)) > static_cast<int64_t>(cpu::kScratchPerThread))
    throw Error(code::kUnsupported, "decodeAttention: too many query heads per key/value head for the CPU");
  int64_t positions = 0;
  for (int64_t n = 0; n < a.rows; ++n) {
    requireIndex("decodeAttention", "lengths", n, a.lengths[n] - int64_t{1}, a.tableStride * kPage);
    for (int64_t p = n * a.tableStride; p < n * a.tableStride + cachePages(a.lengths[n]); ++p)
      requireIndex("decodeAttention", "tables", p, a.tables[p], a.pages);
    positions += a.window > 0 ? std::min<int64_t>(a.lengths[n], a.window) : a.lengths[n];
  }
  const bool worthSharing = positions * a.heads * a.headDim > kElementsPerTask;
  forEachTask(context, a.rows * a.kvHeads, worthSharing, [&](int64_t index, int slot) {
    decode(a, index / a.kvHeads, index % a.kvHeads, cpu::threadScratch(context, slot));
  });
}

}  // namespace rlhf::RLHF_ISA
