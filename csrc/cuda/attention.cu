// Attention's forward pass: a block for a tile of queries of one head, which goes through the keys tile by tile with a
// running softmax (FlashAttention 2, Dao 2023). Tiles of keys are cut at positions of the sequence.

#include "cuda/attention_rows.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/hopper/attention.h"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/pipeline.cuh"

namespace rlhf::cuda {
namespace {

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

template <class Attention, class T>
__global__ void __launch_bounds__(128, 2)
    attentionForwardKernel(const __grid_constant__ ForwardArrays<T> a, const __grid_constant__ AttentionShape shape) {
  RLHF_SHARED_MEMORY(ForwardShared<Attention>, shared);
  const QueryTile<Attention> queries(shape);
  if (queries.count <= 0) return;
  const int head = BlockPlace().head, kvHead = shape.kvHeadOf(head);
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
        softmax.weigh(scores, [&](int row, float factor) { softmax.shrink(output, row, factor); });
        Attention::publish(scores, shared.weights);
        Attention::accumulate(output, scores, shared.weights, shared.v[stage]);
      });

  softmax.finish(a.lse, shape.heads, head, queryRow);
  storeHeadRows<Attention>(output, a.o, a.oStride, shape, head, queryRow, [&](int row) { return 1.0f / softmax.sum[row]; });
}

}  // namespace

void attentionForward(OpContext& context, const AttentionForward& a) {
  requireProducts(a.compute, a.type, "attentionForward");
  dispatchType(a.type, "attentionForward", [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, bf16>) {
      if (launchHopperAttention(context, a)) return;
    }
    dispatchWidth(a.headDim, "attentionForward", [&](auto width) {
      using Attention = AttentionFor<T, decltype(width)::value, 32, 64>;
      static_assert(sizeof(ForwardShared<Attention>) <= kSharedBytesEverywhere);
      const AttentionShape shape = shapeOf(a, sizeof(T), {a.q, a.k, a.v});
      const ForwardArrays<T> arrays{{a.q, a.qStride}, {a.k, a.kStride}, {a.v, a.vStride}, static_cast<T*>(a.o), a.oStride,
                                    static_cast<float*>(a.lse)};
      RLHF_LAUNCH((attentionForwardKernel<Attention, T>), gridOf<Attention>(a, a.heads), dim3(Attention::kThreads),
                  sizeof(ForwardShared<Attention>), context.stream, arrays, shape);
    });
  });
}

}  // namespace rlhf::cuda
