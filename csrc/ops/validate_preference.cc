#include "ops/argument_check.h"
#include "ops/ops.h"

namespace rlhf {

void validate(const SequenceSum& a) {
  const ArgumentCheck check("sequenceSum");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"sequences", a.sequences}});
  check.present({{"offsets", a.offsets}, {"weight", a.weight}, {"x", a.x}, {"sum", a.sum}});
}

void validate(const SequenceSumBackward& a) {
  const ArgumentCheck check("sequenceSumBackward");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"sequences", a.sequences}});
  check.present({{"offsets", a.offsets}, {"weight", a.weight}, {"dSum", a.dSum}, {"dx", a.dx}});
}

void validate(const WpoWeight& a) {
  const ArgumentCheck check("wpoWeight");
  check.floating("type", a.type);
  check.positive({{"rows", a.rows}, {"sequences", a.sequences}, {"pairs", a.pairs}});
  check.present({{"offsets", a.offsets}, {"chosen", a.chosen}, {"rejected", a.rejected}, {"mask", a.mask},
                 {"logProb", a.logProb}, {"lse", a.lse}, {"lseHalf", a.lseHalf}, {"weight", a.weight}});
}

void validate(const PreferenceLoss& a) {
  const ArgumentCheck check("preferenceLoss");
  check.floating("type", a.type);
  check.positive({{"sequences", a.sequences}, {"pairs", a.pairs}});
  check.choice("kind", static_cast<int32_t>(a.kind), 0, static_cast<int32_t>(PreferenceKind::ApoDown));
  check.choice("fDivergence", static_cast<int32_t>(a.fDivergence), 0, static_cast<int32_t>(FDivergence::Alpha));
  check.flag("lengthNormalized", a.lengthNormalized);
  check.flag("statsPerToken", a.statsPerToken);

  const bool sorts = a.kind == PreferenceKind::Aot || a.kind == PreferenceKind::AotUnpaired;
  const bool oddsRatio = a.kind == PreferenceKind::OddsRatio;
  if (a.kind > PreferenceKind::Discopop)
    check.number("fDivergence", static_cast<double>(a.fDivergence), a.fDivergence == FDivergence::ReverseKl,
                 "0 (reverse KL): the other divergences are for losses of the margin between two answers");
  if (sorts)
    check.number("lengthNormalized", a.lengthNormalized, a.lengthNormalized == 0, "0 with losses that sort");
  if (oddsRatio) check.number("lengthNormalized", a.lengthNormalized, a.lengthNormalized == 1, "1 with the odds ratio");
  check.number("beta", a.beta, a.beta > 0, "> 0");
  check.number("labelSmoothing", a.labelSmoothing, a.labelSmoothing >= 0 && a.labelSmoothing < 0.5, "0 to below 0.5");
  if (a.kind == PreferenceKind::ExoPair)
    check.number("labelSmoothing", a.labelSmoothing, a.labelSmoothing > 0, "> 0 with exo_pair, 1e-3 is usual");
  check.finite("margin", a.margin);
  check.finite("fAlpha", a.fAlpha);
  check.number("discopopTau", a.discopopTau, a.discopopTau > 0, "> 0");
  check.finite("scale", a.scale);

  check.present({{"chosen", a.chosen}, {"rejected", a.rejected}});
  check.presentWhen(a.lengthNormalized || a.statsPerToken, "tokens", a.tokens, "to divide by");
  check.present("logProb", a.logProb);
  check.absentWhen(oddsRatio, "refLogProb", a.refLogProb, "with the odds ratio, which has no reference");
  check.absentWhen(sorts, "pairWeight", a.pairWeight, "with losses that sort, which break pairs up");
  check.present("dLogProb", a.dLogProb);
  check.presentWhen(sorts, "order", a.order, "with losses that sort");
  check.present("stats", a.stats);
}

void validate(const KtoLoss& a) {
  const ArgumentCheck check("ktoLoss");
  check.floating("type", a.type);
  check.atLeast("sequences", a.sequences, 1);
  check.number("beta", a.beta, a.beta > 0, "> 0");
  check.number("kl", a.kl, a.kl >= 0, "≥ 0");
  check.number("desirableWeight", a.desirableWeight, a.desirableWeight >= 0, "≥ 0");
  check.number("undesirableWeight", a.undesirableWeight, a.undesirableWeight >= 0, "≥ 0");
  check.finite("scale", a.scale);
  check.present({{"label", a.label}, {"logProb", a.logProb}, {"refLogProb", a.refLogProb}, {"dLogProb", a.dLogProb},
                 {"stats", a.stats}});
}

}  // namespace rlhf
