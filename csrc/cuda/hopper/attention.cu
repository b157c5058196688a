#include "cuda/hopper/attention.h"

#include "cuda/hopper/attention.cuh"

namespace rlhf::cuda {
namespace {

template <int kDim>
void launch(OpContext& context, const AttentionForward& a) {
  using Attention = ForwardTile<kDim>;
  const HopperForwardArrays arrays{makeHeadMap(a.q, a.rows, a.heads, a.headDim, a.qStride, Attention::kRows),
                                   keyMaps(a, a.k, a.kStride, Attention::kCols),
                                   keyMaps(a, a.v, a.vStride, Attention::kCols),
                                   static_cast<bf16*>(a.o),
                                   a.oStride,
                                   static_cast<float*>(a.lse)};
  RLHF_LAUNCH(hopperAttentionForwardKernel<Attention>, gridOf<Attention>(a, a.heads), dim3(Attention::kThreads),
              sizeof(HopperForwardShared<Attention>), context.stream, arrays, shapeOf(a, sizeof(bf16), {}));
}

}  // namespace

bool launchHopperAttention(OpContext& context, const AttentionForward& a) {
  if (!coversHeads(a, {a.q, a.k, a.v, a.o})) return false;
  dispatchTileWidth(a.headDim, [&](auto width) { launch<decltype(width)::value>(context, a); });
  return true;
}

}  // namespace rlhf::cuda
