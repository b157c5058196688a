#include "ops/argument_check.h"
#include "ops/ops.h"

// Losses of tokens, advantages and rewards.

namespace rlhf {

void validate(const Whiten& a) {
  const ArgumentCheck check("whiten");
  check.floating("type", a.type);
  check.atLeast("count", a.count, 0);
  check.flag("shiftMean", a.shiftMean);
  check.number("eps", a.eps, a.eps >= 0, "≥ 0");
  check.present("mask", a.mask);
  check.present("x", a.x);
  check.present("y", a.y);
}

void validate(const KlReward& a) {
  const ArgumentCheck check("klReward");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.atLeast("sequences", a.sequences, 1);
  check.choice("estimator", static_cast<int32_t>(a.estimator), 1, 3);
  check.finite("klCoefficient", a.klCoefficient);
  check.present("offsets", a.offsets);
  check.present("mask", a.mask);
  check.present("logProb", a.logProb);
  check.present("refLogProb", a.refLogProb);
  check.present("score", a.score);
  check.present("reward", a.reward);
  check.present("kl", a.kl);
}

void validate(const Gae& a) {
  const ArgumentCheck check("gae");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.atLeast("sequences", a.sequences, 1);
  check.number("gamma", a.gamma, a.gamma >= 0 && a.gamma <= 1, "0 to 1");
  check.number("lambda", a.lambda, a.lambda >= 0 && a.lambda <= 1, "0 to 1");
  check.present("offsets", a.offsets);
  check.present("mask", a.mask);
  check.present("reward", a.reward);
  check.present("value", a.value);
  check.present("advantage", a.advantage);
  check.present("returns", a.returns);
}

void validate(const PpoPolicyLoss& a) {
  const ArgumentCheck check("ppoPolicyLoss");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.number("clipRange", a.clipRange, a.clipRange >= 0, "≥ 0");
  check.number("dualClip", a.dualClip, a.dualClip == 0 || a.dualClip > 1 + a.clipRange, "0 (none) or > 1 + clipRange");
  check.finite("entropyCoefficient", a.entropyCoefficient);
  check.finite("scale", a.scale);
  check.present("mask", a.mask);
  check.present("logProb", a.logProb);
  check.present("oldLogProb", a.oldLogProb);
  check.present("advantage", a.advantage);
  check.presentWhen(a.entropyCoefficient != 0, "entropy", a.entropy, "with entropyCoefficient ≠ 0");
  check.presentWhen(a.entropyCoefficient != 0, "dEntropy", a.dEntropy, "with entropyCoefficient ≠ 0");
  check.present("dLogProb", a.dLogProb);
  check.present("stats", a.stats);
}

void validate(const PpoValueLoss& a) {
  const ArgumentCheck check("ppoValueLoss");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.finite("clipRange", a.clipRange);
  check.finite("scale", a.scale);
  check.present("mask", a.mask);
  check.present("value", a.value);
  check.present("oldValue", a.oldValue);
  check.present("returns", a.returns);
  check.present("dValue", a.dValue);
  check.present("stats", a.stats);
}

void validate(const TokenNllLoss& a) {
  const ArgumentCheck check("tokenNllLoss");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.finite("scale", a.scale);
  check.present("weight", a.weight);
  check.present("logProb", a.logProb);
  check.present("dLogProb", a.dLogProb);
  check.present("stats", a.stats);
}

void validate(const RewardLoss& a) {
  const ArgumentCheck check("rewardLoss");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.atLeast("pairs", a.pairs, 0);
  check.atLeast("answers", a.answers, 0);
  check.choice("pairLoss", static_cast<int32_t>(a.pairLoss), 1, 2);
  check.number("centering", a.centering, a.centering >= 0, "≥ 0");
  check.number("scoreWeight", a.scoreWeight, a.scoreWeight >= 0, "≥ 0");
  check.finite("scale", a.scale);
  check.present("value", a.value);
  check.presentWhen(a.pairs > 0, "chosen", a.chosen, "with pairs > 0");
  check.presentWhen(a.pairs > 0, "rejected", a.rejected, "with pairs > 0");
  check.presentWhen(a.answers > 0, "scored", a.scored, "with answers > 0");
  check.presentWhen(a.answers > 0, "score", a.score, "with answers > 0");
  check.present("dValue", a.dValue);
  check.present("stats", a.stats);
}

}  // namespace rlhf
