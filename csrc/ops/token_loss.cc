#include "ops/token_loss.h"

namespace rlhf {

TokenLogProbForward TokenLossForwardBackward::forward() const {
  TokenLogProbForward f{.type = type, .rows = rows, .cols = cols, .vocab = vocab, .count = count, .temperature = temperature};
  f.x = x, f.tokens = tokens, f.predictions = predictions, f.sources = sources, f.head = head;
  f.logProb = logProb, f.lse = lse, f.entropy = entropy;
  f.logits = dx ? logits : nullptr;
  return f;
}

TokenLogProbBackward TokenLossForwardBackward::backward() const {
  TokenLogProbBackward g{.type = type, .rows = rows, .cols = cols, .vocab = vocab, .count = count, .temperature = temperature,
                         .lossScale = lossScale};
  g.x = x, g.tokens = tokens, g.predictions = predictions, g.sources = sources, g.head = head;
  g.lse = lse, g.entropy = entropy, g.dLogProb = dLogProb, g.dEntropy = hasBonus() ? dEntropy : nullptr;
  g.logits = logits, g.dx = dx, g.dWeight = dWeight;
  return g;
}

TokenNllLoss TokenLossForwardBackward::nllLoss() const {
  return {.type = type, .rows = rows, .scale = loss.scale, .weight = loss.tokenWeight, .logProb = logProb,
          .dLogProb = dLogProb, .stats = stats};
}

PpoPolicyLoss TokenLossForwardBackward::ppoLoss() const {
  PpoPolicyLoss a{.type = type, .rows = rows, .clipRange = loss.clipRange, .dualClip = loss.dualClip,
                  .entropyCoefficient = loss.entropyCoefficient, .scale = loss.scale};
  a.mask = loss.mask, a.logProb = logProb, a.oldLogProb = loss.oldLogProb, a.advantage = loss.tokenAdvantage;
  a.entropy = entropy, a.dLogProb = dLogProb, a.dEntropy = dEntropy, a.stats = stats;
  return a;
}

GroupPolicyLoss TokenLossForwardBackward::groupLoss() const {
  GroupPolicyLoss a{.type = type, .rows = rows, .sequences = loss.sequences, .level = RatioLevel::Token,
                    .surrogate = loss.surrogate, .lowestRatio = loss.lowestRatio, .highestRatio = loss.highestRatio,
                    .klCoefficient = loss.klCoefficient, .weighKl = loss.weighKl};
  a.offsets = loss.offsets, a.mask = loss.mask, a.weight = loss.sequenceWeight, a.advantage = loss.advantage;
  a.tokenAdvantage = loss.tokenAdvantage, a.logProb = logProb, a.oldLogProb = loss.oldLogProb, a.refLogProb = loss.refLogProb;
  a.dLogProb = dLogProb, a.stats = stats;
  return a;
}

}  // namespace rlhf
