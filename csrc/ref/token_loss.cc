#include "ref/kernels.h"

namespace rlhf::ref {

void tokenLossForwardBackward(OpContext& context, const TokenLossForwardBackward& a) {
  TokenLogProbForward forward = a.forward();
  forward.logits = nullptr;
  tokenLogProbForward(context, forward);
  switch (a.loss.kind) {
    case TokenLossKind::Nll: tokenNllLoss(context, a.nllLoss()); break;
    case TokenLossKind::PpoPolicy: ppoPolicyLoss(context, a.ppoLoss()); break;
    case TokenLossKind::GroupPolicy: groupPolicyLoss(context, a.groupLoss()); break;
  }
  if (!a.dx) return;
  TokenLogProbBackward backward = a.backward();
  backward.logits = nullptr;
  tokenLogProbBackward(context, backward);
}

}  // namespace rlhf::ref
