#include "cuda/hopper/attention.h"

#include "cuda/hopper/attention.cuh"
#include "cuda/prim/capability.h"

namespace rlhf::cuda {
namespace {

KeyMaps keyMaps(const AttentionForward& a, const void* array, int64_t stride) {
  const auto map = [&](int boxRows) { return makeTensorMap(array, a.rows, a.kvHeads * a.headDim, stride, boxRows); };
  if (!a.parents) return {map(KeyMaps::kTile), {}, {}};
  return {map(KeyMaps::kTile), map(KeyMaps::kFew), map(1)};
}

template <int kDim>
void launch(OpContext& context, const AttentionForward& a, const AttentionShape& shape) {
  using Attention = HopperAttention<kDim>;
  const HopperAttentionArrays arrays{makeTensorMap(a.q, a.rows, a.heads * a.headDim, a.qStride, Attention::kRows),
                                     keyMaps(a, a.k, a.kStride),
                                     keyMaps(a, a.v, a.vStride),
                                     static_cast<bf16*>(a.o),
                                     a.oStride,
                                     static_cast<float*>(a.lse)};
  const int tiles = tilesPerSequence(a.maxLength, Attention::kRows);
  const dim3 grid(static_cast<uint32_t>(a.sequences * tiles), static_cast<uint32_t>(a.heads));
  RLHF_LAUNCH(hopperAttentionKernel<Attention>, grid, dim3(Attention::kThreads), sizeof(typename Attention::Shared), context.stream, arrays,
              shape, tiles);
}

}  // namespace

bool launchHopperAttention(OpContext& context, const AttentionForward& a) {
  if (chosenCapability() != 90 || (a.headDim != 64 && a.headDim != 128)) return false;
  const AttentionShape shape = shapeOf(a, sizeof(bf16), {a.q, a.k, a.v, a.o});
  if (!shape.isAligned) return false;
  if (a.headDim == 64) launch<64>(context, a, shape);
  else launch<128>(context, a, shape);
  return true;
}

}  // namespace rlhf::cuda
