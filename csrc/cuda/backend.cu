#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/sums.cuh"
#include "ops/entry.h"

namespace rlhf::cuda {
namespace {

size_t scratchBytes(const Device*, const ScratchLimits* limits) {
  const int64_t rows = limits->rows;
  return std::max({embeddingScratchBytes(rows), normScratchBytes(rows, limits->maxWidth),
                   headNormScratchBytes(rows, std::max(limits->heads, limits->kvHeads), limits->headDim),
                   linearScratchBytes(rows, limits->maxWidth), sumsScratchBytes(), tokenLogProbScratchBytes(rows, limits->maxWidth, limits->vocab),
                   klDivergenceScratchBytes(rows, limits->maxWidth, limits->vocab), sampleScratchBytes(rows, limits->vocab),
                   decodeScratchBytes(rows, limits->heads, limits->headDim, limits->tableStride)});
}

size_t packedWeightBytes(DType, DType, int64_t, int64_t, int32_t) { return 0; }

}  // namespace

Ops makeOps(const char* backend, const char* instructionSet) {
  Ops ops{};
  ops.abiHash = abiHash();
  ops.backend = backend;
  ops.instructionSet = instructionSet;
  ops.maxHeadDim = kWidestAttentionHead;
  ops.scratchBytes = scratchBytes;
  ops.packedWeightBytes = packedWeightBytes;
  ops.embeddingForward = opEntry<EmbeddingForward, embeddingForward>;
  ops.embeddingBackward = opEntry<EmbeddingBackward, embeddingBackward>;
  ops.rmsNormForward = opEntry<RmsNormForward, rmsNormForward>;
  ops.rmsNormBackward = opEntry<RmsNormBackward, rmsNormBackward>;
  ops.layerNormForward = opEntry<LayerNormForward, layerNormForward>;
  ops.layerNormBackward = opEntry<LayerNormBackward, layerNormBackward>;
  ops.headNormForward = opEntry<HeadNormForward, headNormForward>;
  ops.headNormBackward = opEntry<HeadNormBackward, headNormBackward>;
  ops.rotary = opEntry<Rotary, rotary>;
  ops.linearForward = opEntry<LinearForward, linearForward>;
  ops.linearBackward = opEntry<LinearBackward, linearBackward>;
  ops.dropout = opEntry<Dropout, dropout>;
  ops.activationForward = opEntry<ActivationForward, activationForward>;
  ops.activationBackward = opEntry<ActivationBackward, activationBackward>;
  ops.gatedSiluForward = opEntry<GatedSiluForward, gatedSiluForward>;
  ops.gatedSiluBackward = opEntry<GatedSiluBackward, gatedSiluBackward>;
  ops.attentionForward = opEntry<AttentionForward, attentionForward>;
  ops.attentionBackward = opEntry<AttentionBackward, attentionBackward>;
  ops.tokenLogProbForward = opEntry<TokenLogProbForward, tokenLogProbForward>;
  ops.tokenLogProbBackward = opEntry<TokenLogProbBackward, tokenLogProbBackward>;
  ops.tokenLossForwardBackward = opEntry<TokenLossForwardBackward, tokenLossForwardBackward>;
  ops.klDivergenceForward = opEntry<KlDivergenceForward, klDivergenceForward>;
  ops.klDivergenceBackward = opEntry<KlDivergenceBackward, klDivergenceBackward>;
  ops.ppoPolicyLoss = opEntry<PpoPolicyLoss, ppoPolicyLoss>;
  ops.ppoValueLoss = opEntry<PpoValueLoss, ppoValueLoss>;
  ops.tokenNllLoss = opEntry<TokenNllLoss, tokenNllLoss>;
  ops.whiten = opEntry<Whiten, whiten>;
  ops.klReward = opEntry<KlReward, klReward>;
  ops.gae = opEntry<Gae, gae>;
  ops.groupPolicyLoss = opEntry<GroupPolicyLoss, groupPolicyLoss>;
  ops.rewardLoss = opEntry<RewardLoss, rewardLoss>;
  ops.sequenceSum = opEntry<SequenceSum, sequenceSum>;
  ops.sequenceSumBackward = opEntry<SequenceSumBackward, sequenceSumBackward>;
  ops.wpoWeight = opEntry<WpoWeight, wpoWeight>;
  ops.preferenceLoss = opEntry<PreferenceLoss, preferenceLoss>;
  ops.ktoLoss = opEntry<KtoLoss, ktoLoss>;
  ops.adamW = opEntry<AdamW, adamW>;
  ops.narrow = opEntry<Narrow, narrow>;
  ops.squaredNorm = opEntry<SquaredNorm, squaredNorm>;
  ops.sample = opEntry<Sample, sample>;
  ops.kvAppend = opEntry<KvAppend, kvAppend>;
  ops.decodeAttention = opEntry<DecodeAttention, decodeAttention>;
  return ops;
}

}  // namespace rlhf::cuda
