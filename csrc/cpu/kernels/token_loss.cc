#include <algorithm>

#include "cpu/kernels/predictions.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/token_losses.h"

// The ops of the statistics and of the loss on one block of predictions after another: what a block's forward pass leaves in the
// logits, its backward pass takes up again block of the vocabulary by block, which the second-level cache holds for the products.

namespace rlhf::RLHF_ISA {
namespace {

bool counts(const void* mask, int64_t t) { return floats(mask)[t] != 0; }

/// The sequence of a token that lies in one.
int64_t sequenceOf(const TokenLoss& loss, int64_t t) {
  return std::upper_bound(loss.offsets, loss.offsets + loss.sequences, t) - loss.offsets - 1;
}

/// The gradients of the loss by one token's statistics, which are known.
token_loss::TokenSlope slopeAt(const TokenLossForwardBackward& a, int64_t t) {
  switch (a.loss.kind) {
    case TokenLossKind::Nll: return slopeOf(a.nllLoss(), t);
    case TokenLossKind::PpoPolicy: return counts(a.loss.mask, t) ? termOf(a.ppoLoss(), t).slope : token_loss::TokenSlope{};
    case TokenLossKind::GroupPolicy: break;
  }
  return counts(a.loss.mask, t) ? termOf(a.groupLoss(), {}, sequenceOf(a.loss, t), t).slope : token_loss::TokenSlope{};
}

/// The loss of all tokens, whose sums have the order of the tokens.
void sumLoss(OpContext& context, const TokenLossForwardBackward& a) {
  switch (a.loss.kind) {
    case TokenLossKind::Nll: return tokenNllLoss(context, a.nllLoss());
    case TokenLossKind::PpoPolicy: return ppoPolicyLoss(context, a.ppoLoss());
    case TokenLossKind::GroupPolicy: return groupPolicyLoss(context, a.groupLoss());
  }
}

/// The predictions [begin, begin + count) of an op's arguments.
template <class Arguments>
Arguments blockOf(Arguments all, int64_t begin, int64_t count) {
  all.predictions += begin, all.sources += begin;
  all.count = count;
  return all;
}

}  // namespace

void tokenLossForwardBackward(OpContext& context, const TokenLossForwardBackward& a) {
  for (int64_t begin = 0; begin < a.count; begin += a.blockRows) {
    const int64_t count = std::min(a.blockRows, a.count - begin);
    tokenLogProbForward(context, blockOf(a.forward(), begin, count));
    if (!a.dx) continue;
    for (int64_t p = begin; p < begin + count; ++p) {
      const int64_t t = a.predictions[p];
      const token_loss::TokenSlope slope = slopeAt(a, t);
      floats(a.dLogProb)[t] = slope.logProb;
      if (a.dEntropy) floats(a.dEntropy)[t] = slope.entropy;
    }
    tokenLogProbBackward(context, blockOf(a.backward(), begin, count));
  }
  sumLoss(context, a);
}

}  // namespace rlhf::RLHF_ISA
