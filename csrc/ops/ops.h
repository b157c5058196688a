#pragma once
#include "ops/attention.h"
#include "ops/activation.h"
#include "ops/context.h"
#include "ops/decode.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/group_policy.h"
#include "ops/kl_divergence.h"
#include "ops/linear.h"
#include "ops/losses.h"
#include "ops/narrow.h"
#include "ops/norm.h"
#include "ops/optimizer.h"
#include "ops/preference.h"
#include "ops/reward_losses.h"
#include "ops/rotary.h"
#include "ops/token_log_prob.h"
#include "ops/token_loss.h"

namespace rlhf {

// Every op once: X(name in Ops and in the backends, its argument structure).
#define RLHF_FOR_EACH_OP(X)                        \
  X(embeddingForward, EmbeddingForward)            \
  X(embeddingBackward, EmbeddingBackward)          \
  X(rmsNormForward, RmsNormForward)                \
  X(rmsNormBackward, RmsNormBackward)              \
  X(layerNormForward, LayerNormForward)            \
  X(layerNormBackward, LayerNormBackward)          \
  X(headNormForward, HeadNormForward)              \
  X(headNormBackward, HeadNormBackward)            \
  X(rotary, Rotary)                                \
  X(packWeight, PackWeight)                        \
  X(unpackWeight, UnpackWeight)                    \
  X(linearForward, LinearForward)                  \
  X(linearBackward, LinearBackward)                \
  X(dropout, Dropout)                              \
  X(activationForward, ActivationForward)          \
  X(activationBackward, ActivationBackward)        \
  X(gatedSiluForward, GatedSiluForward)            \
  X(gatedSiluBackward, GatedSiluBackward)          \
  X(attentionForward, AttentionForward)            \
  X(attentionBackward, AttentionBackward)          \
  X(tokenLogProbForward, TokenLogProbForward)      \
  X(tokenLogProbBackward, TokenLogProbBackward)    \
  X(klDivergenceForward, KlDivergenceForward)      \
  X(klDivergenceBackward, KlDivergenceBackward)    \
  X(whiten, Whiten)                                \
  X(klReward, KlReward)                            \
  X(gae, Gae)                                      \
  X(ppoPolicyLoss, PpoPolicyLoss)                  \
  X(ppoValueLoss, PpoValueLoss)                    \
  X(tokenNllLoss, TokenNllLoss)                    \
  X(groupPolicyLoss, GroupPolicyLoss)              \
  X(tokenLossForwardBackward, TokenLossForwardBackward) \
  X(rewardLoss, RewardLoss)                        \
  X(sequenceSum, SequenceSum)                      \
  X(sequenceSumBackward, SequenceSumBackward)      \
  X(wpoWeight, WpoWeight)                          \
  X(preferenceLoss, PreferenceLoss)                \
  X(ktoLoss, KtoLoss)                              \
  X(adamW, AdamW)                                  \
  X(narrow, Narrow)                                \
  X(squaredNorm, SquaredNorm)                      \
  X(kvAppend, KvAppend)                            \
  X(decodeAttention, DecodeAttention)              \
  X(sample, Sample)

/// The largest sizes a model will ask for; a backend answers with the scratch memory that covers them all.
struct ScratchLimits {
  int64_t rows = 0;         // N
  int64_t maxWidth = 0;     // the largest K or M of a linear layer, vocabulary excluded
  int64_t vocab = 0;
  int64_t maxRank = 0;
  int64_t heads = 0, kvHeads = 0, headDim = 0;
  int64_t tableStride = 0;  // pages of the longest sequence, where `rows` are sequences being decoded
};

/// The contract of a backend. Entries that a backend does not have are null.
struct Ops {
  uint64_t abiHash;            // abiHash() of the headers the backend was built with
  const char* backend;         // "ref", "cpu", "cuda", "simt"
  const char* instructionSet;  // "avx512", "avx2", "scalar", "sm_90", …
  int64_t maxHeadDim;          // the widest heads that attention has kernels for; 0: any

  size_t (*scratchBytes)(const Device*, const ScratchLimits*);
  size_t (*packedWeightBytes)(DType type, DType compute, int64_t inputs, int64_t outputs, int32_t backward);

#define RLHF_DECLARE_OP(name, Arguments) Status (*name)(OpContext*, const Arguments*);
  RLHF_FOR_EACH_OP(RLHF_DECLARE_OP)
#undef RLHF_DECLARE_OP
};

/// A hash of every op's name, fields and their types: two builds whose hashes differ must not share a table.
uint64_t abiHash();

/// Throws Error naming the op, the field, what was given and what is expected. Every backend calls it before its kernel.
#define RLHF_DECLARE_VALIDATE(name, Arguments) void validate(const Arguments& arguments);
RLHF_FOR_EACH_OP(RLHF_DECLARE_VALIDATE)
#undef RLHF_DECLARE_VALIDATE

}  // namespace rlhf
