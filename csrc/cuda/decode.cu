// Decoding: keys and values into the cache's pages, and attention of one query per sequence to them. A page holds as many
// tokens as a warp has lanes. A block for each query head, whose warps take the sequence's pages in turn and are joined in
// their order at the end, so that a row's bits depend on its own sequence alone.

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/launch.cuh"
#include "cuda/prim/warp.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kPage = static_cast<int>(kCachePageTokens);
static_assert(kPage == 32, "a lane for each token of a page");
constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kDimSlots = 8, kMaxHeadDim = 32 * kDimSlots;  // elements of an output that a lane adds up

template <class T>
struct AppendArrays {
  const int32_t* places;
  const T* k;
  const T* v;
  T* kCache;
  T* vCache;
  int64_t kStride, vStride, kvHeads, dim, pages;
};

template <class T>
__global__ void __launch_bounds__(kThreads) appendKernel(const __grid_constant__ AppendArrays<T> a) {
  const int64_t row = blockIdx.x, place = a.places[row];
  if (place < 0 || place >= a.pages * kPage) return;
  const int64_t page = place / kPage, token = place % kPage;
  for (int64_t i = threadIdx.x; i < a.kvHeads * a.dim; i += kThreads) {
    const int64_t head = i / a.dim, d = i % a.dim;
    const int64_t block = (page * a.kvHeads + head) * a.dim * kPage;
    a.kCache[block + d * kPage + token] = a.k[row * a.kStride + i];
    a.vCache[block + token * a.dim + d] = a.v[row * a.vStride + i];
  }
}

template <class T>
struct DecodeArrays {
  const int32_t* tables;
  const int32_t* lengths;
  const T* q;
  const T* kCache;
  const T* vCache;
  T* o;
  int64_t tableStride, qStride, oStride, heads, kvHeads, dim, pages, window;
  float scale;
};

struct DecodeShared {
  float query[kMaxHeadDim];  // times scale
  float maximum[kWarps], sum[kWarps];
  float output[kWarps][kMaxHeadDim];
};

/// What one warp has added up of its pages; every lane has the maximum, its own share of the sum, and kDimSlots outputs.
struct WarpAttention {
  float maximum = -INFINITY, sum = 0, output[kDimSlots] = {};

  template <class T>
  RLHF_DEVICE void addPage(const T* keys, const T* values, const float* query, int64_t dim, bool visible) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float score = 0;
    for (int64_t d = 0; d < dim; ++d) score += query[d] * toFloat(keys[d * kPage + lane]);
    score = visible ? score : -INFINITY;
    const float highest = fmaxf(maximum, groupMax(score));
    const float correction = expf(maximum - highest), weight = expf(score - highest);
    maximum = highest;
    sum = sum * correction + weight;
#pragma unroll
    for (int slot = 0; slot < kDimSlots; ++slot) output[slot] *= correction;
    for (int token = 0; token < kPage; ++token) {
      const float of = shuffle(weight, token);
      if (of == 0) continue;  // tokens that are not there yet may hold anything
#pragma unroll
      for (int slot = 0; slot < kDimSlots; ++slot)
        if (lane + 32 * slot < dim) output[slot] += of * toFloat(values[token * dim + lane + 32 * slot]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) decodeAttentionKernel(const __grid_constant__ DecodeArrays<T> a) {
  RLHF_SHARED_MEMORY(DecodeShared, shared);
  const int64_t row = blockIdx.x, head = blockIdx.y, kvHead = head * a.kvHeads / a.heads;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t d = threadIdx.x; d < a.dim; d += kThreads)
    shared.query[d] = toFloat(a.q[row * a.qStride + head * a.dim + d]) * a.scale;
  syncThreads();

  const int64_t length = a.lengths[row] < a.tableStride * kPage ? a.lengths[row] : a.tableStride * kPage;
  const int64_t first = a.window > 0 && length > a.window ? length - a.window : 0;
  WarpAttention attention;
  for (int64_t index = first / kPage + warp; index * kPage < length; index += kWarps) {
    const int64_t page = a.tables[row * a.tableStride + index], position = index * kPage + lane;
    if (page < 0 || page >= a.pages) continue;
    const int64_t block = (page * a.kvHeads + kvHead) * a.dim * kPage;
    attention.addPage(a.kCache + block, a.vCache + block, shared.query, a.dim, position >= first && position < length);
  }

  const float sum = groupSum(attention.sum);
  if (lane == 0) shared.maximum[warp] = attention.maximum, shared.sum[warp] = sum;
#pragma unroll
  for (int slot = 0; slot < kDimSlots; ++slot)
    if (lane + 32 * slot < a.dim) shared.output[warp][lane + 32 * slot] = attention.output[slot];
  syncThreads();
  float highest = -INFINITY, total = 0, factor[kWarps];
#pragma unroll
  for (int each = 0; each < kWarps; ++each) highest = fmaxf(highest, shared.maximum[each]);
#pragma unroll
  for (int each = 0; each < kWarps; ++each) {
    factor[each] = shared.maximum[each] == -INFINITY ? 0.0f : expf(shared.maximum[each] - highest);
    total += factor[each] * shared.sum[each];
  }
  for (int64_t d = threadIdx.x; d < a.dim; d += kThreads) {
    float output = 0;
#pragma unroll
    for (int each = 0; each < kWarps; ++each) output += factor[each] * shared.output[each][d];
    a.o[row * a.oStride + head * a.dim + d] = fromFloat<T>(output / total);
  }
}

void requireCacheType(const char* op, DType type, DType cacheType) {
  if (cacheType != type)
    throw Error(code::kUnsupported, format("%s: a %s cache of %s activations; the CUDA backend needs them to be equal", op,
                                           dtypeName(cacheType), dtypeName(type)));
}

}  // namespace

void kvAppend(OpContext& context, const KvAppend& a) {
  requireCacheType("kvAppend", a.type, a.cacheType);
  dispatchType(a.type, "kvAppend", [&](auto zero) {
    using T = decltype(zero);
    const AppendArrays<T> arrays{a.places,
                                 static_cast<const T*>(a.k),
                                 static_cast<const T*>(a.v),
                                 static_cast<T*>(a.kCache),
                                 static_cast<T*>(a.vCache),
                                 a.kStride,
                                 a.vStride,
                                 a.kvHeads,
                                 a.headDim,
                                 a.pages};
    RLHF_LAUNCH(appendKernel<T>, dim3(static_cast<uint32_t>(a.rows)), dim3(kThreads), 0, context.stream, arrays);
  });
}

void decodeAttention(OpContext& context, const DecodeAttention& a) {
  requireCacheType("decodeAttention", a.type, a.cacheType);
  if (a.headDim > kMaxHeadDim)
    throw Error(code::kUnsupported, format("decodeAttention: headDim is %lld, the CUDA backend supports at most %d",
                                           static_cast<long long>(a.headDim), kMaxHeadDim));
  dispatchType(a.type, "decodeAttention", [&](auto zero) {
    using T = decltype(zero);
    const DecodeArrays<T> arrays{a.tables,
                                 a.lengths,
                                 static_cast<const T*>(a.q),
                                 static_cast<const T*>(a.kCache),
                                 static_cast<const T*>(a.vCache),
                                 static_cast<T*>(a.o),
                                 a.tableStride,
                                 a.qStride,
                                 a.oStride,
                                 a.heads,
                                 a.kvHeads,
                                 a.headDim,
                                 a.pages,
                                 a.window,
                                 static_cast<float>(a.scale)};
    RLHF_LAUNCH(decodeAttentionKernel<T>, dim3(static_cast<uint32_t>(a.rows), static_cast<uint32_t>(a.heads)),
                dim3(kThreads), sizeof(DecodeShared), context.stream, arrays);
  });
}

}  // namespace rlhf::cuda
