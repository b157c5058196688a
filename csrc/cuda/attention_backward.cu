// Attention's backward pass without atomics: one kernel sums dq over keys, another dk and dv over the queries that see a
// tile of keys, in the order of the batch, so that equal inputs give equal bits. Both recompute the weights from lse, which
// costs two products more than one kernel that adds dq up in an order of chance (FlashAttention 2, Dao 2023).

#include "cuda/attention_rows.cuh"
#include "cuda/hopper/attention_backward.h"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/pipeline.cuh"
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
  typename Attention::RowTile q, dO;
  typename Attention::ColTile k[2], v;
  typename Attention::Exchange gradients;
};

/// dq of a tile of queries: with p = exp(scale·q·k − lse), dq = scale·Σ p·(dO·v − delta)·k.
template <class Attention, class T>
__global__ void __launch_bounds__(128, 2)
    queryGradientKernel(const __grid_constant__ BackwardArrays<T> a, const __grid_constant__ AttentionShape shape) {
  RLHF_SHARED_MEMORY(QueryShared<Attention>, shared);
  const QueryTile<Attention> queries(shape);
  if (queries.count <= 0) return;
  const int head = BlockPlace().head, kvHead = shape.kvHeadOf(head);
  const auto queryRow = [&](int row) { return queries.rowAt(row); };
  loadHeadRows<Attention>(shared.q, a.q, shape, head, queryRow);  // these come with the first keys
  loadHeadRows<Attention>(shared.dO, a.dO, shape, head, queryRow);
  float lse[Attention::kRowSlots], delta[Attention::kRowSlots];
#pragma unroll
  for (int row = 0; row < Attention::kRowSlots; ++row) {
    const int64_t at = queryRow(Attention::rowOf(row));
    lse[row] = at < 0 ? 0.0f : a.lse[at * shape.heads + head] * kLog2E;
    delta[row] = at < 0 ? 0.0f : a.delta[at * shape.heads + head];
  }

  typename Attention::Sums dq;
  typename Attention::Scores gradients{};
  const auto loadKeys = [&](typename Attention::ColTile& shared, const HeadRows<T>& array, int tile) {
    loadHeadRows<Attention>(shared, array, shape, kvHead, [&](int row) { return queries.keyRow(tile, row); });
  };
  pipelinedPairs(
      queries.keyTiles(), [&](int tile, int stage) { loadKeys(shared.k[stage], a.k, tile); },
      [&](int tile) { loadKeys(shared.v, a.v, tile); },
      [&](int tile, int stage) {
        if (!queries.takesPart(shape, tile)) return;
        typename Attention::Scores scores;
        Attention::multiply(scores, shared.q, shared.k[stage]);
        Attention::multiply(gradients, shared.dO, shared.v);
        queries.hide(scores, shape, tile);
        forEachScore<Attention>(gradients, [&](int row, int col, float& gradient) {
          const float score = Attention::score(scores, row, col) * (shape.scale * kLog2E);
          gradient = exp2Approx(score - lse[row]) * (gradient - delta[row]);
        });
      },
      [&](int tile, int stage) {
        if (!queries.takesPart(shape, tile)) return;
        Attention::publish(gradients, shared.gradients);
        Attention::accumulate(dq, gradients, shared.gradients, shared.k[stage]);
      });
  storeHeadRows<Attention>(dq, a.dq, a.q.stride, shape, head, queryRow, [&](int) { return shape.scale; });
}

template <class Attention>
struct KeyShared {
  typename Attention::RowTile k, v;
  typename Attention::ColTile q[2], dO;
  typename Attention::Exchange weights, gradients;
  float lse[2][Attention::kCols], delta[2][Attention::kCols];
};

/// Adds up dk and dv of one tile of keys over tiles of queries.
template <class Attention, class T>
struct KeyGradients {
  const BackwardArrays<T>& a;
  const AttentionShape& shape;
  KeyShared<Attention>& shared;
  int firstKey;  // position of the tile
  int keys;
  typename Attention::Sums dk{}, dv{};
  typename Attention::Scores gradients{};

  /// All queries of a sequence, the keys' own or a child of it, that see any of the keys.
  RLHF_DEVICE void addSequence(const SequenceRows& sequence, int kvHead) {
    const int group = shape.heads / shape.kvHeads;
    const QueriesOfKeys queries(shape, sequence, firstKey, keys, Attention::kCols);
    const int firstRow = queries.firstRow, tiles = queries.tiles;
    const auto headOf = [&](int tile) { return kvHead * group + tile / tiles; };
    const auto rowsOf = [&](int tile) {
      return [&sequence, first = firstRow + tile % tiles * Attention::kCols](int row) { return sequence.ownRow(first + row); };
    };
    const auto maskOf = [&](int tile) {
      return TileMask(shape, sequence.inherited + firstRow + tile % tiles * Attention::kCols, firstKey);
    };
    pipelinedPairs(
        group * tiles,
        [&](int tile, int stage) {
          loadHeadRows<Attention>(shared.q[stage], a.q, shape, headOf(tile), rowsOf(tile));
          loadStatistics(headOf(tile), rowsOf(tile), stage);
        },
        [&](int tile) { loadHeadRows<Attention>(shared.dO, a.dO, shape, headOf(tile), rowsOf(tile)); },
        [&](int tile, int stage) {
          if (takesPart(maskOf(tile))) addValues(maskOf(tile), stage);
        },
        [&](int tile, int stage) {
          if (!takesPart(maskOf(tile))) return;
          Attention::publish(gradients, shared.gradients);
          Attention::accumulate(dk, gradients, shared.gradients, shared.q[stage]);
        });
  }

  /// Whether the calling warp has keys that any of a tile's queries sees.
  RLHF_DEVICE bool takesPart(const TileMask& mask) const {
    return Attention::warpFirstRow() < keys && !mask.hidesAll(Attention::kCols - 1, Attention::warpFirstRow());
  }

  template <class QueryRow>
  RLHF_DEVICE void loadStatistics(int head, const QueryRow& queryRow, int stage) {
    const int col = static_cast<int>(threadIdx.x);
    static_assert(Attention::kCols <= Attention::kThreads, "a thread for each query");
    if (col >= Attention::kCols) return;
    const int64_t at = queryRow(col);
    shared.lse[stage][col] = at < 0 ? 0.0f : a.lse[at * shape.heads + head] * kLog2E;
    shared.delta[stage][col] = at < 0 ? 0.0f : a.delta[at * shape.heads + head];
  }

  /// Adds to dv, and leaves the scores' gradients. Scores are transposed here, [key][query], so that weights and gradients are first
  /// factors of dv and dk. Queries behind the last are rows of zeros, which add nothing.
  RLHF_DEVICE void addValues(const TileMask& mask, int stage) {
    typename Attention::Scores weights;
    Attention::multiply(weights, shared.k, shared.q[stage]);
    Attention::multiply(gradients, shared.v, shared.dO);
    if (!mask.seesAll(0, Attention::kCols - 1, Attention::kRows)) {
      forEachScore<Attention>(weights, [&](int row, int col, float& score) {
        if (!mask.sees(Attention::colOf(col), Attention::rowOf(row))) score = -INFINITY;
      });
    }
    forEachScore<Attention>(weights, [&](int row, int col, float& weight) {
      const int query = Attention::colOf(col);
      weight = exp2Approx(weight * (shape.scale * kLog2E) - shared.lse[stage][query]);
      float& gradient = Attention::score(gradients, row, col);
      gradient = weight * (gradient - shared.delta[stage][query]);
    });
    Attention::publish(weights, shared.weights);
    Attention::accumulate(dv, weights, shared.weights, shared.dO);
  }
};

/// dk and dv of a tile of a sequence's own keys: dv = Σ p·dO, dk = scale·Σ p·(dO·v − delta)·q, over the queries of all heads that
/// share the key head, of the sequence first and then of its children.
template <class Attention, class T>
__global__ void __launch_bounds__(128, 2)
    keyGradientKernel(const __grid_constant__ BackwardArrays<T> a, const __grid_constant__ AttentionShape shape) {
  RLHF_SHARED_MEMORY(KeyShared<Attention>, shared);
  const BlockPlace place;  // a sequence's first keys are seen by the most queries
  const int index = place.sequence, kvHead = place.head, firstRow = place.tile * Attention::kRows;
  const SequenceRows sequence(shape, index);
  if (firstRow >= sequence.length) return;
  const auto keyRow = [&](int row) { return sequence.ownRow(firstRow + row); };
  loadHeadRows<Attention>(shared.k, a.k, shape, kvHead, keyRow);  // these come with the first queries
  loadHeadRows<Attention>(shared.v, a.v, shape, kvHead, keyRow);
  KeyGradients<Attention, T> sums{a, shape, shared, sequence.inherited + firstRow,
                                  lesser(Attention::kRows, sequence.length - firstRow)};
  for (int each = index; each < shape.sequences; each = shape.nextChild(index, each)) sums.addSequence(SequenceRows(shape, each), kvHead);
  storeHeadRows<Attention>(sums.dk, a.dk, a.k.stride, shape, kvHead, keyRow, [&](int) { return shape.scale; });
  storeHeadRows<Attention>(sums.dv, a.dv, a.v.stride, shape, kvHead, keyRow, [](int) { return 1.0f; });
}

template <class T, int kDim>
void launchGradients(OpContext& context, const AttentionBackward& a, const BackwardArrays<T>& arrays) {
  // As many rows and columns as the registers of a thread hold beside its sums.
  using OfQueries = AttentionFor<T, kDim, 32, kDim == 128 || kDim == 32 ? 32 : 64>;
  using OfKeys = AttentionFor<T, kDim, kDim == 64 ? 32 : 16, kDim == 64 ? 32 : 64>;
  static_assert(sizeof(QueryShared<OfQueries>) <= kSharedBytesEverywhere && sizeof(KeyShared<OfKeys>) <= kSharedBytesEverywhere);
  const AttentionShape shape = shapeOf(a, sizeof(T), {a.q, a.k, a.v, a.dO});
  RLHF_LAUNCH((queryGradientKernel<OfQueries, T>), gridOf<OfQueries>(a, a.heads), dim3(OfQueries::kThreads),
              sizeof(QueryShared<OfQueries>), context.stream, arrays, shape);
  RLHF_LAUNCH((keyGradientKernel<OfKeys, T>), gridOf<OfKeys>(a, a.kvHeads), dim3(OfKeys::kThreads),
              sizeof(KeyShared<OfKeys>), context.stream, arrays, shape);
}

}  // namespace

void attentionBackward(OpContext& context, const AttentionBackward& a) {
  requireProducts(a.compute, a.type, "attentionBackward");
  dispatchType(a.type, "attentionBackward", [&](auto zero) {
    using T = decltype(zero);
    const BackwardArrays<T> arrays{{a.q, a.qStride}, {a.k, a.kStride}, {a.v, a.vStride}, {a.o, a.oStride}, {a.dO, a.oStride},
                                   static_cast<const float*>(a.lse), static_cast<float*>(a.delta), static_cast<T*>(a.dq),
                                   static_cast<T*>(a.dk), static_cast<T*>(a.dv)};
    const int64_t count = a.rows * a.heads;
    constexpr int64_t kPerBlock = kDeltaThreads / 32;
    RLHF_LAUNCH(deltaKernel<T>, dim3(static_cast<uint32_t>((count + kPerBlock - 1) / kPerBlock)), dim3(kDeltaThreads), 0,
                context.stream, arrays, count, a.heads, a.headDim);
    if constexpr (std::is_same_v<T, bf16>) {
      if (launchHopperAttentionGradients(context, a)) return;
    }
    dispatchWidth(a.headDim, "attentionBackward",
                  [&](auto width) { launchGradients<T, decltype(width)::value>(context, a, arrays); });
  });
}

}  // namespace rlhf::cuda
