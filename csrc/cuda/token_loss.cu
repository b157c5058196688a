// Statistics, loss and gradients of one block of predictions after another: the ops themselves, on a block each. The loss goes
// over all tokens every time, which is nothing beside the block's products: those of blocks to come get their gradients later.

#include <algorithm>

#include "cuda/kernels.h"

namespace rlhf::cuda {
namespace {

/// The predictions [begin, begin + count) of an op's arguments.
template <class Arguments>
Arguments blockOf(Arguments all, int64_t begin, int64_t count) {
  all.predictions += begin, all.sources += begin;
  all.count = count;
  return all;
}

void loss(OpContext& context, const TokenLossForwardBackward& a) {
  switch (a.loss.kind) {
    case TokenLossKind::Nll: return tokenNllLoss(context, a.nllLoss());
    case TokenLossKind::PpoPolicy: return ppoPolicyLoss(context, a.ppoLoss());
    case TokenLossKind::GroupPolicy: return groupPolicyLoss(context, a.groupLoss());
  }
}

}  // namespace

void tokenLossForwardBackward(OpContext& context, const TokenLossForwardBackward& a) {
  for (int64_t begin = 0; begin < a.count; begin += a.blockRows) {
    const int64_t count = std::min(a.blockRows, a.count - begin);
    tokenLogProbForward(context, blockOf(a.forward(), begin, count));
    if (!a.dx) continue;
    loss(context, a);
    tokenLogProbBackward(context, blockOf(a.backward(), begin, count));
  }
  loss(context, a);
}

}  // namespace rlhf::cuda
