// Attention of one query per sequence to the cache (flash-decoding, Dao et al. 2023). A sequence is split where its positions are
// multiples of kSplitTokens, whatever the batch and the GPU, so that a row's bits depend on its own sequence alone. A block takes one
// split for up to eight query heads that share their keys, which are read once, and each of its warps one page of the split. Another
// kernel joins the splits in their order.

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/launch.cuh"
#include "cuda/prim/warp.cuh"
#include "cuda/rows.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kPage = static_cast<int>(kCachePageTokens);
static_assert(kPage == 32, "a lane for each token of a page");
constexpr int kWarps = 8, kThreads = 32 * kWarps, kSplitTokens = kWarps * kPage;
constexpr int kLanePack = 8;  // numbers that a lane loads at once: of a key's row one for each token, or of a value
constexpr int kMaxHeadDim = 32 * kLanePack;

template <class T>
using LanePack = Pack<T, kLanePack>;

/// Packs that are on their way to a lane at once: 128 bytes, or 48 where the sums of eight heads need the registers.
template <class T, int kHeads>
constexpr int kAhead = (kHeads > 4 ? 48 : 128) / static_cast<int>(sizeof(LanePack<T>));

template <class T>
struct DecodeArrays {
  const int32_t* tables;
  const int32_t* lengths;
  const T* q;
  const T* kCache;
  const T* vCache;
  T* o;
  float* parts;  // [rows, heads, splits] of maximum, sum and output[dim]; null where a table has one split alone
  int64_t tableStride, splits, qStride, oStride, heads, kvHeads, pages, window;
  int dim;
  float scale;

  RLHF_DEVICE float* part(int64_t row, int64_t head, int64_t split) const {
    return parts + ((row * heads + head) * splits + split) * (dim + 2);
  }
};

/// The positions that the query of a row sees, [first, end), and the splits that hold them.
struct Seen {
  int64_t first, end;

  template <class T>
  RLHF_DEVICE Seen(const DecodeArrays<T>& a, int64_t row) {
    const int64_t length = a.lengths[row], capacity = a.tableStride * kPage;
    end = length < capacity ? length : capacity;
    first = a.window > 0 && end > a.window ? end - a.window : 0;
  }
  RLHF_DEVICE bool reaches(int64_t split) const { return split >= first / kSplitTokens && split * kSplitTokens < end; }

  template <class Function>
  RLHF_DEVICE void forEachSplit(Function&& f) const {
    for (int64_t split = first / kSplitTokens; split * kSplitTokens < end; ++split) f(split);
  }
};

/// A page of a key head, keys [D][kPage] and values [kPage][D], and which of its tokens the query sees; null where there is none.
template <class T>
struct CachePage {
  const T* keys = nullptr;
  const T* values = nullptr;
  int first = 0, end = 0;

  RLHF_DEVICE bool shows(int token) const { return token >= first && token < end; }
};

template <class T>
RLHF_DEVICE CachePage<T> findPage(const DecodeArrays<T>& a, const Seen& seen, int64_t row, int64_t index, int64_t kvHead) {
  CachePage<T> found;
  found.first = static_cast<int>(seen.first - index * kPage), found.end = static_cast<int>(seen.end - index * kPage);
  if (!ballot(found.shows(static_cast<int>(threadIdx.x) % 32))) return found;
  const int64_t page = a.tables[row * a.tableStride + index];
  if (page < 0 || page >= a.pages) return found;
  const int64_t at = (page * a.kvHeads + kvHead) * a.dim * kPage;
  found.keys = a.kCache + at, found.values = a.vCache + at;
  return found;
}

/// kLanePack numbers, of which `left` are there: all or none where they are read as a pack. The others are not read and become zero.
template <bool kPacked, class T>
RLHF_DEVICE LanePack<T> loadNumbers(const T* from, int left) {
  LanePack<T> numbers = {};
  if constexpr (kPacked) {
    if (left > 0) numbers = loadPack<kLanePack>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kLanePack; ++i) numbers.item[i] = i < left ? from[i] : fromFloat<T>(0.0f);
  }
  return numbers;
}

// Four lanes read a row of a page's keys, and eight rows are read at once; the sums are then spread over the lanes, a token each.
constexpr int kKeyRows = 8;
constexpr int kQueryWidth = kMaxHeadDim + kKeyRows;  // a round of three packs ahead ends behind the widest head
RLHF_DEVICE int tokenOf(int lane) { return lane % 4 * kLanePack + lane / 4; }
RLHF_DEVICE int laneOf(int token) { return token % kLanePack * 4 + token / kLanePack; }

/// Sums of eight numbers over the lanes with equal lane % 4, of which lane 4·i + lane % 4 is given sum i.
RLHF_DEVICE float spreadSums(float (&sums)[kLanePack]) {
#pragma unroll
  for (int half = kLanePack / 2; half > 0; half /= 2) {
    const bool isUpper = (threadIdx.x & static_cast<uint32_t>(4 * half)) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float sent = isUpper ? sums[i] : sums[i + half];
      sums[i] = (isUpper ? sums[i + half] : sums[i]) + shuffleXor(sent, 4 * half);
    }
  }
  return sums[0];
}

/// The scores of the lane's token.
template <bool kPacked, class T, int kHeads>
RLHF_DEVICE void multiplyKeys(float (&score)[kHeads], const DecodeArrays<T>& a, const T* keys, const float (&query)[kHeads][kQueryWidth]) {
  constexpr int kRound = kKeyRows * kAhead<T, kHeads>;
  static_assert((kMaxHeadDim + kRound - 1) / kRound * kRound <= kQueryWidth);
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, token = lane % 4 * kLanePack;
  float sums[kHeads][kLanePack] = {};
  for (int first = row; first - row < a.dim; first += kRound) {
    LanePack<T> numbers[kAhead<T, kHeads>];
#pragma unroll
    for (int i = 0; i < kAhead<T, kHeads>; ++i) {
      const int d = first + i * kKeyRows;
      numbers[i] = loadNumbers<kPacked>(keys + d * kPage + token, d < a.dim ? kLanePack : 0);
    }
#pragma unroll
    for (int i = 0; i < kAhead<T, kHeads>; ++i) {
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        const float q = query[head][first + i * kKeyRows];
#pragma unroll
        for (int n = 0; n < kLanePack; ++n) sums[head][n] += q * toFloat(numbers[i].item[n]);
      }
    }
  }
#pragma unroll
  for (int head = 0; head < kHeads; ++head) score[head] = spreadSums(sums[head]);
}

/// How a warp's lanes share values out: `width` numbers of each of `tokens` tokens at once, kLanePack to a lane.
struct ValueLanes {
  int width, tokens, token, number;

  explicit RLHF_DEVICE ValueLanes(int dim) {
    const int lane = static_cast<int>(threadIdx.x) % 32, lanes = (dim + kLanePack - 1) / kLanePack;
    width = lanes * kLanePack, tokens = 32 / lanes, token = lane / lanes, number = lane % lanes * kLanePack;
  }
};

/// Adds the values of the tokens that the lane shares out, times the weights that tokens' lanes hold.
template <bool kPacked, class T, int kHeads>
RLHF_DEVICE void addValues(float (&output)[kHeads][kLanePack], const DecodeArrays<T>& a, const CachePage<T>& page,
                           const ValueLanes& lanes, const float (&weight)[kHeads]) {
  for (int first = 0; first < kPage; first += lanes.tokens * kAhead<T, kHeads>) {
    LanePack<T> numbers[kAhead<T, kHeads>];
#pragma unroll
    for (int i = 0; i < kAhead<T, kHeads>; ++i) {
      const int token = first + i * lanes.tokens + lanes.token;
      // Tokens that are not there yet may hold anything.
      const bool isSeen = token < kPage && page.shows(token);
      numbers[i] = loadNumbers<kPacked>(page.values + token * a.dim + lanes.number, isSeen ? a.dim - lanes.number : 0);
    }
#pragma unroll
    for (int i = 0; i < kAhead<T, kHeads>; ++i) {
      const int source = laneOf((first + i * lanes.tokens + lanes.token) % kPage);
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        const float of = shuffle(weight[head], source);
#pragma unroll
        for (int n = 0; n < kLanePack; ++n) output[head][n] += of * toFloat(numbers[i].item[n]);
      }
    }
  }
}

template <int kHeads>
struct SplitShared {
  float query[kHeads][kQueryWidth];  // times scale, zero from the head's width on
  float maximum[kWarps][kHeads], sum[kWarps][kHeads];
  alignas(16) float output[kWarps][kHeads][32 * kLanePack];  // as the lanes hold it

  RLHF_DEVICE float highest(int head) const {
    float most = -INFINITY;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) most = fmaxf(most, maximum[warp][head]);
    return most;
  }
};

/// The query heads of a block: `count` from `first` on, of one key head.
template <int kHeads>
struct BlockHeads {
  int64_t kvHead, first;
  int count;

  explicit RLHF_DEVICE BlockHeads(int64_t group) {
    const int64_t chunks = (group + kHeads - 1) / kHeads, begin = blockIdx.y % chunks * kHeads;
    kvHead = blockIdx.y / chunks;
    first = kvHead * group + begin;
    count = static_cast<int>(group - begin < kHeads ? group - begin : kHeads);
  }
};

/// The block's warps joined: the output of the row, or of its split.
template <class T, int kHeads>
RLHF_DEVICE void storeSplit(const DecodeArrays<T>& a, const SplitShared<kHeads>& shared, const BlockHeads<kHeads>& heads, const ValueLanes& lanes) {
  const int64_t row = blockIdx.x, split = blockIdx.z;
  for (int i = static_cast<int>(threadIdx.x); i < heads.count * a.dim; i += kThreads) {
    const int head = i / a.dim, d = i % a.dim;
    float sum = 0, output = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += shared.sum[warp][head];
      for (int token = 0; token < lanes.tokens; ++token) output += shared.output[warp][head][token * lanes.width + d];
    }
    if (!a.parts) {
      a.o[row * a.oStride + (heads.first + head) * a.dim + d] = fromFloat<T>(output / sum);
      continue;
    }
    float* part = a.part(row, heads.first + head, split);
    part[2 + d] = output;
    if (d == 0) part[0] = shared.highest(head), part[1] = sum;
  }
}

template <class T, int kHeads, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2) decodeSplitKernel(const __grid_constant__ DecodeArrays<T> a) {
  RLHF_SHARED_MEMORY(SplitShared<kHeads>, shared);
  const int64_t row = blockIdx.x, split = blockIdx.z;
  const Seen seen(a, row);
  if (a.parts && !seen.reaches(split)) return;
  const BlockHeads<kHeads> heads(a.heads / a.kvHeads);
  for (int i = static_cast<int>(threadIdx.x); i < kHeads * kQueryWidth; i += kThreads) {
    const int head = i / kQueryWidth, d = i % kQueryWidth;
    const bool isThere = head < heads.count && d < a.dim;
    shared.query[head][d] = isThere ? toFloat(a.q[row * a.qStride + (heads.first + head) * a.dim + d]) * a.scale : 0.0f;
  }
  syncThreads();

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const CachePage<T> page = findPage(a, seen, row, split * kWarps + warp, heads.kvHead);
  const bool isSeen = page.keys && page.shows(tokenOf(lane));
  float score[kHeads] = {}, output[kHeads][kLanePack] = {};
  if (page.keys) multiplyKeys<kPacked>(score, a, page.keys, shared.query);
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    score[head] = isSeen ? score[head] : -INFINITY;
    const float most = groupMax(score[head]);
    if (lane == 0) shared.maximum[warp][head] = most;
  }
  syncThreads();
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    score[head] = isSeen ? expf(score[head] - shared.highest(head)) : 0.0f;
    const float sum = groupSum(score[head]);
    if (lane == 0) shared.sum[warp][head] = sum;
  }
  const ValueLanes lanes(a.dim);
  if (page.keys) addValues<kPacked>(output, a, page, lanes, score);
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
#pragma unroll
    for (int n = 0; n < kLanePack; ++n) shared.output[warp][head][lane * kLanePack + n] = output[head][n];
  }
  syncThreads();
  storeSplit(a, shared, heads, lanes);
}

/// The parts of a row's splits joined in their order; a thread for each number.
template <class T>
__global__ void __launch_bounds__(kMaxHeadDim) joinSplitsKernel(const __grid_constant__ DecodeArrays<T> a) {
  const int64_t row = blockIdx.x, head = blockIdx.y;
  const int d = static_cast<int>(threadIdx.x);
  if (d >= a.dim) return;
  const Seen seen(a, row);
  float highest = -INFINITY, sum = 0, output = 0;
  seen.forEachSplit([&](int64_t split) { highest = fmaxf(highest, a.part(row, head, split)[0]); });
  seen.forEachSplit([&](int64_t split) {
    const float* part = a.part(row, head, split);
    const float factor = part[0] == -INFINITY ? 0.0f : expf(part[0] - highest);
    sum += factor * part[1];
    output += factor * part[2 + d];
  });
  a.o[row * a.oStride + head * a.dim + d] = fromFloat<T>(output / sum);
}

int64_t splitsOf(int64_t tableStride) { return (tableStride + kWarps - 1) / kWarps; }

template <class T, int kHeads, bool kPacked = true>
void launchSplits(OpContext& context, const DecodeAttention& a, const DecodeArrays<T>& arrays) {
  const int64_t chunks = (a.heads / a.kvHeads + kHeads - 1) / kHeads;
  const dim3 grid(static_cast<uint32_t>(a.rows), static_cast<uint32_t>(a.kvHeads * chunks), static_cast<uint32_t>(arrays.splits));
  RLHF_LAUNCH((decodeSplitKernel<T, kHeads, kPacked>), grid, dim3(kThreads), sizeof(SplitShared<kHeads>), context.stream, arrays);
}

}  // namespace

size_t decodeScratchBytes(int64_t rows, int64_t heads, int64_t headDim, int64_t tableStride) {
  const int64_t splits = splitsOf(tableStride);
  return splits > 1 ? static_cast<size_t>(rows * heads * splits * (headDim + 2)) * sizeof(float) : 0;
}

void decodeAttention(OpContext& context, const DecodeAttention& a) {
  requireCacheType("decodeAttention", a.type, a.cacheType);
  if (a.headDim > kMaxHeadDim)
    throw Error(code::kUnsupported, format("decodeAttention: headDim is %lld, the CUDA backend supports at most %d",
                                           static_cast<long long>(a.headDim), kMaxHeadDim));
  const size_t scratchBytes = decodeScratchBytes(a.rows, a.heads, a.headDim, a.tableStride);
  requireScratch(context, scratchBytes, "decodeAttention");
  dispatchType(a.type, "decodeAttention", [&](auto zero) {
    using T = decltype(zero);
    const DecodeArrays<T> arrays{a.tables,
                                 a.lengths,
                                 static_cast<const T*>(a.q),
                                 static_cast<const T*>(a.kCache),
                                 static_cast<const T*>(a.vCache),
                                 static_cast<T*>(a.o),
                                 scratchBytes > 0 ? static_cast<float*>(context.scratch) : nullptr,
                                 a.tableStride,
                                 splitsOf(a.tableStride),
                                 a.qStride,
                                 a.oStride,
                                 a.heads,
                                 a.kvHeads,
                                 a.pages,
                                 a.window,
                                 static_cast<int>(a.headDim),
                                 static_cast<float>(a.scale)};
    const int64_t group = a.heads / a.kvHeads;
    if (!canPack<T>(kLanePack, {a.headDim}, {a.kCache, a.vCache})) launchSplits<T, 1, false>(context, a, arrays);
    else if (group == 1) launchSplits<T, 1>(context, a, arrays);
    else if (group == 2) launchSplits<T, 2>(context, a, arrays);
    else if (group <= 4) launchSplits<T, 4>(context, a, arrays);
    else launchSplits<T, 8>(context, a, arrays);
    if (!arrays.parts) return;
    RLHF_LAUNCH(joinSplitsKernel<T>, dim3(static_cast<uint32_t>(a.rows), static_cast<uint32_t>(a.heads)),
                dim3(static_cast<uint32_t>((a.headDim + 31) / 32 * 32)), 0, context.stream, arrays);
  });
}

}  // namespace rlhf::cuda
