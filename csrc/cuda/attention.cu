// Attention's forward pass: a block for a tile of queries of one head, which goes through the keys tile by tile with a
// running softmax (FlashAttention 2, Dao 2023). Tiles of keys are cut at positions of the sequence.

#include "cuda/attention_rows.cuh"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/pipeline.cuh"
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
  typename Attention::RowTile q;
  typename Attention::ColTile k, v[2];
  typename Attention::Exchange weights;
};

/// The softmax of the thread's rows so far, in powers of two: maxima of the scores times `factor`, and this thread's share of the sums.
template <class Attention>
struct RunningSoftmax {
  float factor;  // > 0
  float maximum[Attention::kRowSlots], sum[Attention::kRowSlots];

  explicit RLHF_DEVICE RunningSoftmax(float scoreFactor) : factor(scoreFactor) {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) maximum[row] = -INFINITY, sum[row] = 0.0f;
  }

  /// Scores become weights relative to the new maxima; sums of values so far shrink to them.
  RLHF_DEVICE void take(typename Attention::Scores& scores, typename Attention::Sums& output) {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) {
      float highest = -INFINITY;
#pragma unroll
      for (int col = 0; col < Attention::kColSlots; ++col) highest = fmaxf(highest, Attention::score(scores, row, col));
      highest = fmaxf(maximum[row], groupMax<Attention::kLanesPerRow>(highest) * factor);
      const float origin = highest == -INFINITY ? 0.0f : highest;  // a row that sees no key yet: −∞ − (−∞) is no number
      if (ballot(highest != maximum[row]) != 0) {  // in few tiles: maxima are found early
        const float correction = exp2Approx(maximum[row] - origin);
        sum[row] *= correction;
#pragma unroll
        for (int dim = 0; dim < Attention::kDimSlots; ++dim) Attention::sum(output, row, dim) *= correction;
        maximum[row] = highest;
      }
#pragma unroll
      for (int col = 0; col < Attention::kColSlots; ++col) {
        float& score = Attention::score(scores, row, col);
        score = exp2Approx(score * factor - origin);
        sum[row] += score;
      }
    }
  }
};

template <class Attention, class T>
__global__ void __launch_bounds__(128, 2)
    attentionForwardKernel(const __grid_constant__ ForwardArrays<T> a, const __grid_constant__ AttentionShape shape, int tiles) {
  RLHF_SHARED_MEMORY(ForwardShared<Attention>, shared);
  const QueryTile<Attention> queries(shape, tiles);
  if (queries.count <= 0) return;
  const int head = static_cast<int>(blockIdx.y), kvHead = shape.kvHeadOf(head);
  const auto queryRow = [&](int row) { return queries.rowAt(row); };
  loadHeadRows<Attention>(shared.q, a.q, shape, head, queryRow);  // comes with the first keys

  RunningSoftmax<Attention> softmax(shape.scale * kLog2E);
  typename Attention::Sums output;
  typename Attention::Scores scores{};
  const auto loadKeys = [&](typename Attention::ColTile& shared, const HeadRows<T>& array, int tile) {
    loadHeadRows<Attention>(shared, array, shape, kvHead, [&](int row) { return queries.keyRow(tile, row); });
  };
  pipelinedPairs(
      queries.keyTiles(), [&](int tile, int stage) { loadKeys(shared.v[stage], a.v, tile); },
      [&](int tile) { loadKeys(shared.k, a.k, tile); },
      [&](int tile, int) {
        if (queries.takesPart(shape, tile)) Attention::multiply(scores, shared.q, shared.k);
      },
      [&](int tile, int stage) {
        if (!queries.takesPart(shape, tile)) return;
        queries.hide(scores, shape, tile);
        softmax.take(scores, output);
        Attention::publish(scores, shared.weights);
        Attention::accumulate(output, scores, shared.weights, shared.v[stage]);
      });

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
      using Attention = AttentionFor<T, decltype(width)::value, 32, 64>;
      static_assert(sizeof(ForwardShared<Attention>) <= kSharedBytesEverywhere);
      const AttentionShape shape = shapeOf(a, sizeof(T), {a.q, a.k, a.v});
      const ForwardArrays<T> arrays{{a.q, a.qStride}, {a.k, a.kStride}, {a.v, a.vStride}, static_cast<T*>(a.o), a.oStride,
                                    static_cast<float*>(a.lse)};
      const int tiles = tilesPerSequence(a.maxLength, Attention::kRows);
      const dim3 grid(static_cast<uint32_t>(a.sequences * tiles), static_cast<uint32_t>(a.heads));
      RLHF_LAUNCH((attentionForwardKernel<Attention, T>), grid, dim3(Attention::kThreads),
                  sizeof(ForwardShared<Attention>), context.stream, arrays, shape, tiles);
    });
  });
}

}  // namespace rlhf::cuda
