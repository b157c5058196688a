// Attention's forward pass: a block for a tile of queries of one head, which goes through the keys tile by tile with a
// running softmax (FlashAttention 2, Dao 2023). Tiles of keys are cut at positions of the sequence.

#include "cuda/attention_rows.cuh"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/warp.cuh"

namespace rlhf::cuda {
namespace {

constexpr float kLn2 = 0.6931471805599453f;

template <class T>
struct ForwardArrays {
  HeadRows<T> q, k, v;
  T* o;
  int64_t oStride;
  float* lse;
};

template <class Attention>
struct ForwardShared {
  typename Attention::Tile q, k, v;
  typename Attention::Exchange weights;
};

/// The softmax of the thread's rows so far, of scores times log2 e: maxima, and this thread's share of the sums.
template <class Attention>
struct RunningSoftmax {
  float maximum[Attention::kRowSlots], sum[Attention::kRowSlots];

  RLHF_DEVICE RunningSoftmax() {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) maximum[row] = -INFINITY, sum[row] = 0.0f;
  }

  /// Scores become weights relative to the new maxima; sums of values so far shrink to them.
  RLHF_DEVICE void take(typename Attention::Scores& scores, typename Attention::Sums& output) {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) {
      float highest = maximum[row];
#pragma unroll
      for (int col = 0; col < Attention::kColSlots; ++col) highest = fmaxf(highest, Attention::score(scores, row, col));
      highest = groupMax<Attention::kLanesPerRow>(highest);
      const float origin = highest == -INFINITY ? 0.0f : highest;  // a row that sees no key yet: −∞ − (−∞) is no number
      const float correction = exp2f(maximum[row] - origin);
      maximum[row] = highest;
      sum[row] *= correction;
#pragma unroll
      for (int col = 0; col < Attention::kColSlots; ++col) {
        float& score = Attention::score(scores, row, col);
        score = exp2f(score - origin);
        sum[row] += score;
      }
#pragma unroll
      for (int dim = 0; dim < Attention::kDimSlots; ++dim) Attention::sum(output, row, dim) *= correction;
    }
  }
};

template <class T, int kDim>
__global__ void __launch_bounds__(128, 2)
    attentionForwardKernel(const __grid_constant__ ForwardArrays<T> a, const __grid_constant__ AttentionShape shape,
                           int64_t tiles) {
  using Attention = AttentionFor<T, kDim>;
  RLHF_SHARED_MEMORY(ForwardShared<Attention>, shared);
  const SequenceRows sequence(shape, blockIdx.x / tiles);
  // The last tiles see the most keys, so they begin first.
  const int64_t firstRow = (tiles - 1 - blockIdx.x % tiles) * Attention::kRows;
  if (firstRow >= sequence.length) return;
  const int64_t head = blockIdx.y, kvHead = shape.kvHeadOf(head);
  const int64_t firstQuery = sequence.inherited + firstRow;
  const int64_t firstTile = shape.firstSeen(firstQuery) / Attention::kCols;
  const int64_t lastTile = (lesser(firstQuery + Attention::kRows, sequence.positions()) - 1) / Attention::kCols;
  const auto keyRow = [&](int64_t tile) {
    return [&sequence, first = tile * Attention::kCols](int row) {
      return first + row < sequence.positions() ? sequence.rowAt(first + row) : int64_t{-1};
    };
  };
  const auto queryRow = [&](int row) { return firstRow + row < sequence.length ? sequence.begin + firstRow + row : -1; };

  loadHeadRows<Attention>(shared.q, a.q, shape, head, queryRow);
  loadHeadRows<Attention>(shared.k, a.k, shape, kvHead, keyRow(firstTile));
  cpAsyncCommit();
  RunningSoftmax<Attention> softmax;
  typename Attention::Sums output;
  for (int64_t tile = firstTile; tile <= lastTile; ++tile) {
    cpAsyncWait<0>();
    syncThreads();  // keys have come; values and weights of the tile before have been read
    loadHeadRows<Attention>(shared.v, a.v, shape, kvHead, keyRow(tile));
    cpAsyncCommit();
    typename Attention::Scores scores;
    Attention::multiply(scores, shared.q, shared.k);
    syncThreads();  // keys have been read
    if (tile < lastTile) loadHeadRows<Attention>(shared.k, a.k, shape, kvHead, keyRow(tile + 1));
    cpAsyncCommit();
    const TileMask mask(shape, firstQuery, tile * Attention::kCols);
    forEachScore<Attention>(scores, [&](int row, int col, float& score) {
      score = mask.sees(Attention::rowOf(row), Attention::colOf(col)) ? score * (shape.scale * kLog2E) : -INFINITY;
    });
    softmax.take(scores, output);
    Attention::publish(scores, shared.weights);
    cpAsyncWait<1>();
    syncThreads();  // values have come, weights stand where all find them
    Attention::accumulate(output, scores, shared.weights, shared.v);
  }

#pragma unroll
  for (int row = 0; row < Attention::kRowSlots; ++row) {
    softmax.sum[row] = groupSum<Attention::kLanesPerRow>(softmax.sum[row]);
    const int64_t target = queryRow(Attention::rowOf(row));
    if (target >= 0 && threadIdx.x % Attention::kLanesPerRow == 0)
      a.lse[target * shape.heads + head] = kLn2 * (softmax.maximum[row] + log2f(softmax.sum[row]));
  }
  storeHeadRows<Attention>(output, a.o, a.oStride, shape, head, queryRow, [&](int row) { return 1.0f / softmax.sum[row]; });
}

}  // namespace

void attentionForward(OpContext& context, const AttentionForward& a) {
  dispatchType(a.type, "attentionForward", [&](auto zero) {
    using T = decltype(zero);
    dispatchWidth(a.headDim, "attentionForward", [&](auto width) {
      using Attention = AttentionFor<T, decltype(width)::value>;
      const AttentionShape shape = shapeOf(a, sizeof(T), {a.q, a.k, a.v});
      const ForwardArrays<T> arrays{{static_cast<const T*>(a.q), a.qStride}, {static_cast<const T*>(a.k), a.kStride},
                                    {static_cast<const T*>(a.v), a.vStride}, static_cast<T*>(a.o),
                                    a.oStride,                               static_cast<float*>(a.lse)};
      const int64_t tiles = tilesPerSequence(a.maxLength, Attention::kRows);
      const dim3 grid(static_cast<uint32_t>(a.sequences * tiles), static_cast<uint32_t>(a.heads));
      RLHF_LAUNCH((attentionForwardKernel<T, decltype(width)::value>), grid, dim3(Attention::kThreads),
                  sizeof(ForwardShared<Attention>), context.stream, arrays, shape, tiles);
    });
  });
}

}  // namespace rlhf::cuda
