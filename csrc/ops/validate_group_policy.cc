#include "ops/argument_check.h"
#include "ops/ops.h"

namespace rlhf {

void validate(const GroupPolicyLoss& a) {
  const ArgumentCheck check("groupPolicyLoss");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"sequences", a.sequences}});
  // An answer's own ratio leaves no room for tokens' advantages.
  check.choice("level", static_cast<int32_t>(a.level), 0, a.tokenAdvantage ? 0 : 2);
  check.choice("surrogate", static_cast<int32_t>(a.surrogate), 0, 1);
  check.number("lowestRatio", a.lowestRatio, a.lowestRatio >= 0, "≥ 0");
  check.number("highestRatio", a.highestRatio, a.highestRatio >= a.lowestRatio, "≥ lowestRatio");
  check.finite("klCoefficient", a.klCoefficient);
  check.choice("weighKl", a.weighKl, 0, 1);
  check.present({{"offsets", a.offsets}, {"mask", a.mask}, {"weight", a.weight}, {"logProb", a.logProb}, {"oldLogProb", a.oldLogProb}});
  check.presentWhen(!a.tokenAdvantage, "advantage", a.advantage, "without tokenAdvantage");
  check.presentWhen(a.klCoefficient != 0, "refLogProb", a.refLogProb, "with klCoefficient ≠ 0");
  check.present({{"dLogProb", a.dLogProb}, {"stats", a.stats}});
}

}  // namespace rlhf
