#include "cuda/hopper/attention_backward.h"

#include "cuda/hopper/attention_backward.cuh"

namespace rlhf::cuda {
namespace {

TensorMap queryMap(const AttentionBackward& a, const void* array, int64_t stride, int boxRows) {
  return makeHeadMap(array, a.rows, a.heads, a.headDim, stride, boxRows);
}

template <class Attention>
void launchQueryGradients(OpContext& context, const AttentionBackward& a, const AttentionShape& shape) {
  const HopperQueryArrays arrays{queryMap(a, a.q, a.qStride, Attention::kRows),
                                 queryMap(a, a.dO, a.oStride, Attention::kRows),
                                 keyMaps(a, a.k, a.kStride, Attention::kCols),
                                 keyMaps(a, a.v, a.vStride, Attention::kCols),
                                 static_cast<const float*>(a.lse),
                                 static_cast<const float*>(a.delta),
                                 static_cast<bf16*>(a.dq),
                                 a.qStride};
  RLHF_LAUNCH(hopperQueryGradientKernel<Attention>, gridOf<Attention>(a, a.heads), dim3(Attention::kThreads),
              sizeof(HopperQueryShared<Attention>), context.stream, arrays, shape);
}

template <class Attention>
void launchKeyGradients(OpContext& context, const AttentionBackward& a, const AttentionShape& shape) {
  const auto keyMap = [&](const void* array, int64_t stride) {
    return makeHeadMap(array, a.rows, a.kvHeads, a.headDim, stride, Attention::kRows);
  };
  const HopperKeyArrays arrays{keyMap(a.k, a.kStride),
                               keyMap(a.v, a.vStride),
                               queryMap(a, a.q, a.qStride, Attention::kCols),
                               queryMap(a, a.dO, a.oStride, Attention::kCols),
                               static_cast<const float*>(a.lse),
                               static_cast<const float*>(a.delta),
                               static_cast<bf16*>(a.dk),
                               static_cast<bf16*>(a.dv),
                               a.kStride,
                               a.vStride};
  RLHF_LAUNCH(hopperKeyGradientKernel<Attention>, gridOf<Attention>(a, a.kvHeads), dim3(Attention::kThreads),
              sizeof(HopperKeyShared<Attention>), context.stream, arrays, shape);
}

template <int kDim>
void launch(OpContext& context, const AttentionBackward& a) {
  const AttentionShape shape = shapeOf(a, sizeof(bf16), {});
  launchQueryGradients<QueryGradientTile<kDim>>(context, a, shape);
  launchKeyGradients<KeyGradientTile<kDim>>(context, a, shape);
}

}  // namespace

bool launchHopperAttentionGradients(OpContext& context, const AttentionBackward& a) {
  if (!coversHeads(a, {a.q, a.k, a.v, a.dO, a.dq, a.dk, a.dv})) return false;
  dispatchTileWidth(a.headDim, [&](auto width) { launch<decltype(width)::value>(context, a); });
  return true;
}

}  // namespace rlhf::cuda
