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
  check.present({{"mask", a.mask}, {"x", a.x}, {"y", a.y}});
}

void validate(const KlReward& a) {
  const ArgumentCheck check("klReward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"sequences", a.sequences}});
  check.choice("estimator", static_cast<int32_t>(a.estimator), 1, 3);
  check.finite("klCoefficient", a.klCoefficient);
  check.present({{"offsets", a.offsets}, {"mask", a.mask}, {"logProb", a.logProb}, {"refLogProb", a.refLogProb},
                 {"score", a.score}, {"reward", a.reward}, {"kl", a.kl}});
}

void validate(const Gae& a) {
  const ArgumentCheck check("gae");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"sequences", a.sequences}});
  check.number("gamma", a.gamma, a.gamma >= 0 && a.gamma <= 1, "0 to 1");
  check.number("lambda", a.lambda, a.lambda >= 0 && a.lambda <= 1, "0 to 1");
  check.present({{"offsets", a.offsets}, {"mask", a.mask}, {"reward", a.reward}, {"value", a.value}, {"advantage", a.advantage},
                 {"returns", a.returns}});
}

void validate(const PpoPolicyLoss& a) {
  const ArgumentCheck check("ppoPolicyLoss");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.number("clipRange", a.clipRange, a.clipRange >= 0, "≥ 0");
  check.number("dualClip", a.dualClip, a.dualClip == 0 || a.dualClip > 1 + a.clipRange, "0 (none) or > 1 + clipRange");
  check.finite("entropyCoefficient", a.entropyCoefficient);
  check.finite("scale", a.scale);
  check.present({{"mask", a.mask}, {"logProb", a.logProb}, {"oldLogProb", a.oldLogProb}, {"advantage", a.advantage}});
  check.presentWhen(a.entropyCoefficient != 0, "entropy", a.entropy, "with entropyCoefficient ≠ 0");
  check.presentWhen(a.entropyCoefficient != 0, "dEntropy", a.dEntropy, "with entropyCoefficient ≠ 0");
  check.present({{"dLogProb", a.dLogProb}, {"stats", a.stats}});
}

void validate(const PpoValueLoss& a) {
  const ArgumentCheck check("ppoValueLoss");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.finite("clipRange", a.clipRange);
  check.finite("scale", a.scale);
  check.present({{"mask", a.mask}, {"value", a.value}, {"oldValue", a.oldValue}, {"returns", a.returns}, {"dValue", a.dValue},
                 {"stats", a.stats}});
}

void validate(const TokenNllLoss& a) {
  const ArgumentCheck check("tokenNllLoss");
  check.floating("type", a.type);
  check.atLeast("rows", a.rows, 1);
  check.finite("scale", a.scale);
  check.present({{"weight", a.weight}, {"logProb", a.logProb}, {"dLogProb", a.dLogProb}, {"stats", a.stats}});
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
  check.present({{"dValue", a.dValue}, {"stats", a.stats}});
}

}  // namespace rlhf
