#pragma once
#include <cstddef>

#include "ops/ops.h"

// The ops that this backend has, one function each; backend.cu gathers them into a table. All throw Error.

namespace rlhf::cuda {

void embeddingForward(OpContext& context, const EmbeddingForward& arguments);
void embeddingBackward(OpContext& context, const EmbeddingBackward& arguments);
size_t embeddingScratchBytes(int64_t rows);

void rmsNormForward(OpContext& context, const RmsNormForward& arguments);
void rmsNormBackward(OpContext& context, const RmsNormBackward& arguments);
void layerNormForward(OpContext& context, const LayerNormForward& arguments);
void layerNormBackward(OpContext& context, const LayerNormBackward& arguments);
size_t normScratchBytes(int64_t rows, int64_t cols);

void headNormForward(OpContext& context, const HeadNormForward& arguments);
void headNormBackward(OpContext& context, const HeadNormBackward& arguments);
size_t headNormScratchBytes(int64_t rows, int64_t heads, int64_t headDim);

void rotary(OpContext& context, const Rotary& arguments);

void linearForward(OpContext& context, const LinearForward& arguments);
void linearBackward(OpContext& context, const LinearBackward& arguments);
size_t linearScratchBytes(int64_t rows, int64_t outputs);

void dropout(OpContext& context, const Dropout& arguments);

void activationForward(OpContext& context, const ActivationForward& arguments);
void activationBackward(OpContext& context, const ActivationBackward& arguments);
void gatedSiluForward(OpContext& context, const GatedSiluForward& arguments);
void gatedSiluBackward(OpContext& context, const GatedSiluBackward& arguments);

/// The widest heads that attention has kernels for, in training (dispatchWidth) and in decoding.
inline constexpr int64_t kWidestAttentionHead = 128;
void attentionForward(OpContext& context, const AttentionForward& arguments);
void attentionBackward(OpContext& context, const AttentionBackward& arguments);

void tokenLogProbForward(OpContext& context, const TokenLogProbForward& arguments);
void tokenLogProbBackward(OpContext& context, const TokenLogProbBackward& arguments);
void tokenLossForwardBackward(OpContext& context, const TokenLossForwardBackward& arguments);
size_t tokenLogProbScratchBytes(int64_t rows, int64_t cols, int64_t vocab);

void klDivergenceForward(OpContext& context, const KlDivergenceForward& arguments);
void klDivergenceBackward(OpContext& context, const KlDivergenceBackward& arguments);
size_t klDivergenceScratchBytes(int64_t rows, int64_t cols, int64_t vocab);

void ppoPolicyLoss(OpContext& context, const PpoPolicyLoss& arguments);
void ppoValueLoss(OpContext& context, const PpoValueLoss& arguments);
void tokenNllLoss(OpContext& context, const TokenNllLoss& arguments);

void whiten(OpContext& context, const Whiten& arguments);
void klReward(OpContext& context, const KlReward& arguments);
void gae(OpContext& context, const Gae& arguments);

void groupPolicyLoss(OpContext& context, const GroupPolicyLoss& arguments);

void rewardLoss(OpContext& context, const RewardLoss& arguments);

void sequenceSum(OpContext& context, const SequenceSum& arguments);
void sequenceSumBackward(OpContext& context, const SequenceSumBackward& arguments);
void wpoWeight(OpContext& context, const WpoWeight& arguments);
void preferenceLoss(OpContext& context, const PreferenceLoss& arguments);
void ktoLoss(OpContext& context, const KtoLoss& arguments);

void adamW(OpContext& context, const AdamW& arguments);
void narrow(OpContext& context, const Narrow& arguments);
void squaredNorm(OpContext& context, const SquaredNorm& arguments);

void sample(OpContext& context, const Sample& arguments);
size_t sampleScratchBytes(int64_t rows, int64_t vocab);

void kvAppend(OpContext& context, const KvAppend& arguments);
void decodeAttention(OpContext& context, const DecodeAttention& arguments);
size_t decodeScratchBytes(int64_t rows, int64_t heads, int64_t headDim, int64_t tableStride);

/// The table, under the given name ("cuda", "simt").
Ops makeOps(const char* backend, const char* instructionSet);

}  // namespace rlhf::cuda
