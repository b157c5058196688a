// Attention's backward pass without atomics: one kernel sums dq over keys, another dk and dv over the queries that see a
// tile of keys, in the order of the batch, so that equal inputs give equal bits. Both recompute the weights from lse, which
// costs two products more than one kernel that adds dq up in an order of chance (FlashAttention 2, Dao 2023).

#include "cuda/attention_rows.cuh"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/warp.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kDeltaThreads = 128;

template <class T>
struct BackwardArrays {
  HeadRows<T> q, k, v, o, dO;
  const float* lse;
  float* delta;
  T* dq;
  T* dk;
  T* dv;
};

/// delta[row, head] = Σ_d dO·o: a warp for each.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    deltaKernel(const __grid_constant__ BackwardArrays<T> a, int64_t count, int64_t heads, int64_t dim) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kDeltaThreads + threadIdx.x) / 32;
  if (index >= count) return;
  const int64_t at = index / heads * a.o.stride + index % heads * dim;
  float sum = 0;
  for (int64_t d = threadIdx.x % 32; d < dim; d += 32) sum += toFloat(a.dO.data[at + d]) * toFloat(a.o.data[at + d]);
  sum = groupSum(sum);
  if (threadIdx.x % 32 == 0) a.delta[index] = sum;
}

template <class Attention>
struct QueryShared {
  typename Attention::Tile q, dO, k, v;
  typename Attention::Exchange gradients;
};

/// dq of a tile of queries: with p = exp(scale·q·k − lse), dq = scale·Σ p·(dO·v − delta)·k.
template <class T, int kDim>
__global__ void __launch_bounds__(128, 2)
    queryGradientKernel(const __grid_constant__ BackwardArrays<T> a, const __grid_constant__ AttentionShape shape, int64_t tiles) {
  using Attention = AttentionFor<T, kDim>;
  RLHF_SHARED_MEMORY(QueryShared<Attention>, shared);
  const SequenceRows sequence(shape, blockIdx.x / tiles);
  const int64_t firstRow = (tiles - 1 - blockIdx.x % tiles) * Attention::kRows;
  if (firstRow >= sequence.length) return;
  const int64_t head = blockIdx.y, kvHead = shape.kvHeadOf(head);
  const int64_t firstQuery = sequence.inherited + firstRow;
  const int64_t lastTile = (lesser(firstQuery + Attention::kRows, sequence.positions()) - 1) / Attention::kCols;
  const auto queryRow = [&](int row) { return firstRow + row < sequence.length ? sequence.begin + firstRow + row : -1; };

  loadHeadRows<Attention>(shared.q, a.q, shape, head, queryRow);
  loadHeadRows<Attention>(shared.dO, a.dO, shape, head, queryRow);
  float lse[Attention::kRowSlots], delta[Attention::kRowSlots];
#pragma unroll
  for (int row = 0; row < Attention::kRowSlots; ++row) {
    const int64_t at = queryRow(Attention::rowOf(row));
    lse[row] = at < 0 ? 0.0f : a.lse[at * shape.heads + head] * kLog2E;
    delta[row] = at < 0 ? 0.0f : a.delta[at * shape.heads + head];
  }
  typename Attention::Sums dq;
  for (int64_t tile = shape.firstSeen(firstQuery) / Attention::kCols; tile <= lastTile; ++tile) {
    const auto keyRow = [&](int row) {
      const int64_t position = tile * Attention::kCols + row;
      return position < sequence.positions() ? sequence.rowAt(position) : int64_t{-1};
    };
    loadHeadRows<Attention>(shared.k, a.k, shape, kvHead, keyRow);
    loadHeadRows<Attention>(shared.v, a.v, shape, kvHead, keyRow);
    cpAsyncCommit();
    cpAsyncWait<0>();
    syncThreads();
    typename Attention::Scores scores, gradients;
    Attention::multiply(scores, shared.q, shared.k);
    Attention::multiply(gradients, shared.dO, shared.v);
    const TileMask mask(shape, firstQuery, tile * Attention::kCols);
    forEachScore<Attention>(gradients, [&](int row, int col, float& gradient) {
      const float score = Attention::score(scores, row, col) * (shape.scale * kLog2E) - lse[row];
      gradient = mask.sees(Attention::rowOf(row), Attention::colOf(col)) ? exp2f(score) * (gradient - delta[row]) : 0.0f;
    });
    Attention::publish(gradients, shared.gradients);
    if (Attention::kExchanges) syncThreads();
    Attention::accumulate(dq, gradients, shared.gradients, shared.k);
    syncThreads();  // keys, values and gradients have been read
  }
  storeHeadRows<Attention>(dq, a.dq, a.q.stride, shape, head, queryRow, [&](int) { return shape.scale; });
}

template <class Attention>
struct KeyShared {
  typename Attention::Tile k, v, q, dO;
  typename Attention::Exchange weights, gradients;
  float lse[Attention::kCols], delta[Attention::kCols];
};

/// Adds up dk and dv of one tile of keys over tiles of queries.
template <class T, int kDim>
struct KeyGradients {
  using Attention = AttentionFor<T, kDim>;
  const BackwardArrays<T>& a;
  const AttentionShape& shape;
  KeyShared<Attention>& shared;
  int64_t firstKey;  // position of the tile
  int keys;
  typename Attention::Sums dk{}, dv{};

  /// All queries of a sequence, the keys' own or a child of it, that see any of the keys.
  RLHF_DEVICE void addSequence(const SequenceRows& sequence, int64_t kvHead) {
    const int64_t group = shape.heads / shape.kvHeads;
    const int64_t firstRow = firstKey > sequence.inherited ? firstKey - sequence.inherited : 0;
    int64_t endRow = sequence.length;
    if (shape.window > 0 && firstKey + keys - 1 + shape.window < sequence.positions())
      endRow = firstKey + keys - 1 + shape.window - sequence.inherited;
    for (int64_t head = kvHead * group; head < (kvHead + 1) * group; ++head)
      for (int64_t row = firstRow; row < endRow; row += Attention::kCols) addQueries(sequence, head, row);
  }

  RLHF_DEVICE void addQueries(const SequenceRows& sequence, int64_t head, int64_t firstRow) {
    const auto queryRow = [&](int row) { return firstRow + row < sequence.length ? sequence.begin + firstRow + row : -1; };
    loadHeadRows<Attention>(shared.q, a.q, shape, head, queryRow);
    loadHeadRows<Attention>(shared.dO, a.dO, shape, head, queryRow);
    for (int col = static_cast<int>(threadIdx.x); col < Attention::kCols; col += Attention::kThreads) {
      const int64_t at = queryRow(col);
      shared.lse[col] = at < 0 ? 0.0f : a.lse[at * shape.heads + head] * kLog2E;
      shared.delta[col] = at < 0 ? 0.0f : a.delta[at * shape.heads + head];
    }
    cpAsyncCommit();
    cpAsyncWait<0>();
    syncThreads();
    // Scores are transposed here, [key][query], so that weights and gradients are first factors of dv and dk.
    typename Attention::Scores weights, gradients;
    Attention::multiply(weights, shared.k, shared.q);
    Attention::multiply(gradients, shared.v, shared.dO);
    const TileMask mask(shape, sequence.inherited + firstRow, firstKey);
    const int queries = static_cast<int>(lesser(Attention::kCols, sequence.length - firstRow));
    forEachScore<Attention>(weights, [&](int row, int col, float& weight) {
      const int key = Attention::rowOf(row), query = Attention::colOf(col);
      const bool visible = key < keys && query < queries && mask.sees(query, key);
      weight = visible ? exp2f(weight * (shape.scale * kLog2E) - shared.lse[query]) : 0.0f;
      float& gradient = Attention::score(gradients, row, col);
      gradient = weight * (gradient - shared.delta[query]);
    });
    Attention::publish(weights, shared.weights);
    Attention::publish(gradients, shared.gradients);
    if (Attention::kExchanges) syncThreads();
    Attention::accumulate(dv, weights, shared.weights, shared.dO);
    Attention::accumulate(dk, gradients, shared.gradients, shared.q);
    syncThreads();  // queries have been read
  }
};

/// dk and dv of a tile of a sequence's own keys: dv = Σ p·dO, dk = scale·Σ p·(dO·v − delta)·q, over the queries of all heads that
/// share the key head, of the sequence first and then of its children.
template <class T, int kDim>
__global__ void __launch_bounds__(128, 2)
    keyGradientKernel(const __grid_constant__ BackwardArrays<T> a, const __grid_constant__ AttentionShape shape, int64_t tiles) {
  using Attention = AttentionFor<T, kDim>;
  RLHF_SHARED_MEMORY(KeyShared<Attention>, shared);
  const int64_t index = blockIdx.x / tiles, firstRow = blockIdx.x % tiles * Attention::kRows, kvHead = blockIdx.y;
  const SequenceRows sequence(shape, index);
  if (firstRow >= sequence.length) return;
  const auto keyRow = [&](int row) { return firstRow + row < sequence.length ? sequence.begin + firstRow + row : -1; };
  loadHeadRows<Attention>(shared.k, a.k, shape, kvHead, keyRow);
  loadHeadRows<Attention>(shared.v, a.v, shape, kvHead, keyRow);
  KeyGradients<T, kDim> sums{a, shape, shared, sequence.inherited + firstRow,
                             static_cast<int>(lesser(Attention::kRows, sequence.length - firstRow))};
  sums.addSequence(sequence, kvHead);
  if (shape.parents)
    for (int64_t child = index + 1; child < shape.sequences; ++child)
      if (shape.parents[child] == index) sums.addSequence(SequenceRows(shape, child), kvHead);
  storeHeadRows<Attention>(sums.dk, a.dk, a.k.stride, shape, kvHead, keyRow, [&](int) { return shape.scale; });
  storeHeadRows<Attention>(sums.dv, a.dv, a.v.stride, shape, kvHead, keyRow, [](int) { return 1.0f; });
}

template <class T, int kDim>
void launchGradients(OpContext& context, const AttentionBackward& a, const BackwardArrays<T>& arrays) {
  using Attention = AttentionFor<T, kDim>;
  const AttentionShape shape = shapeOf(a, sizeof(T), {a.q, a.k, a.v, a.dO});
  const int64_t tiles = tilesPerSequence(a.maxLength, Attention::kRows);
  const auto blocks = static_cast<uint32_t>(a.sequences * tiles);
  RLHF_LAUNCH((queryGradientKernel<T, kDim>), dim3(blocks, static_cast<uint32_t>(a.heads)), dim3(Attention::kThreads),
              sizeof(QueryShared<Attention>), context.stream, arrays, shape, tiles);
  RLHF_LAUNCH((keyGradientKernel<T, kDim>), dim3(blocks, static_cast<uint32_t>(a.kvHeads)), dim3(Attention::kThreads),
              sizeof(KeyShared<Attention>), context.stream, arrays, shape, tiles);
}

}  // namespace

void attentionBackward(OpContext& context, const AttentionBackward& a) {
  dispatchType(a.type, "attentionBackward", [&](auto zero) {
    using T = decltype(zero);
    const auto rows = [](const void* data, int64_t stride) { return HeadRows<T>{static_cast<const T*>(data), stride}; };
    const BackwardArrays<T> arrays{rows(a.q, a.qStride),  rows(a.k, a.kStride),          rows(a.v, a.vStride),
                                   rows(a.o, a.oStride),  rows(a.dO, a.oStride),         static_cast<const float*>(a.lse),
                                   static_cast<float*>(a.delta), static_cast<T*>(a.dq), static_cast<T*>(a.dk),
                                   static_cast<T*>(a.dv)};
    const int64_t count = a.rows * a.heads;
    constexpr int64_t kPerBlock = kDeltaThreads / 32;
    RLHF_LAUNCH(deltaKernel<T>, dim3(static_cast<uint32_t>((count + kPerBlock - 1) / kPerBlock)), dim3(kDeltaThreads), 0,
                context.stream, arrays, count, a.heads, a.headDim);
    dispatchWidth(a.headDim, "attentionBackward",
                  [&](auto width) { launchGradients<T, decltype(width)::value>(context, a, arrays); });
  });
}

}  // namespace rlhf::cuda
