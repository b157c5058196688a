#include <array>

#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
struct Slope {
  T loss, slope;
};

template <class T>
Slope<T> pairLoss(PairLoss kind, const T& z) {
  if (kind == PairLoss::Logistic) return {negativeLogSigmoid(z), -sigmoid(-z)};
  return realPart(z) < 0 ? Slope<T>{-z, T(-1)} : Slope<T>{T(0), T(0)};
}

template <class T>
void run(const RewardLoss& a) {
  std::array<T, RewardLoss::kStatCount> sums{};
  const T* value = in<T>(a.value);
  T* dValue = out<T>(a.dValue);
  for (int64_t t = 0; t < a.rows; ++t) dValue[t] = 0;

  for (int64_t p = 0; p < a.pairs; ++p) {
    checkIndex("rewardLoss", "chosen", p, a.chosen[p], a.rows);
    checkIndex("rewardLoss", "rejected", p, a.rejected[p], a.rows);
    const T chosen = value[a.chosen[p]], rejected = value[a.rejected[p]];
    const T margin = a.margin ? in<T>(a.margin)[p] : T(0), label = a.label ? in<T>(a.label)[p] : T(1);
    const T difference = chosen - rejected, total = chosen + rejected;
    const Slope<T> wins = pairLoss(a.pairLoss, difference - margin), loses = pairLoss(a.pairLoss, -difference - margin);
    const T slope = label * wins.slope - (T(1) - label) * loses.slope, pull = T(2 * a.centering) * total;
    dValue[a.chosen[p]] += T(a.scale) * (pull + slope);
    dValue[a.rejected[p]] += T(a.scale) * (pull - slope);
    sums[RewardLoss::kLoss] += label * wins.loss + (T(1) - label) * loses.loss + T(a.centering) * total * total;
    sums[RewardLoss::kPairs] += T(1);
    sums[RewardLoss::kReward] += total;
    sums[RewardLoss::kRewards] += T(2);
    if (realPart(label) == 0.5) continue;
    const T lead = realPart(label) > 0.5 ? difference : -difference;
    sums[RewardLoss::kDecided] += T(1);
    sums[RewardLoss::kCorrect] += T(realPart(lead) > 0 ? 1 : realPart(lead) == 0 ? 0.5 : 0);
    sums[RewardLoss::kMargin] += lead;
  }

  for (int64_t i = 0; i < a.answers; ++i) {
    checkIndex("rewardLoss", "scored", i, a.scored[i], a.rows);
    const T reward = value[a.scored[i]], error = reward - in<T>(a.score)[i];
    dValue[a.scored[i]] += T(2 * a.scoreWeight * a.scale) * error;
    sums[RewardLoss::kLoss] += T(a.scoreWeight) * error * error;
    sums[RewardLoss::kReward] += reward;
    sums[RewardLoss::kRewards] += T(1);
    sums[RewardLoss::kAnswers] += T(1);
    sums[RewardLoss::kSquaredError] += error * error;
  }
  for (size_t i = 0; i < sums.size(); ++i) out<T>(a.stats)[i] = sums[i];
}

}  // namespace

RLHF_REF_OP(rewardLoss, RewardLoss)

}  // namespace rlhf::ref
