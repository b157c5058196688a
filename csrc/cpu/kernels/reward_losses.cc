#include <algorithm>
#include <array>
#include <cmath>

#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"

// A handful of numbers per pair: plain loops on the calling thread, in double as the other losses.

namespace rlhf::RLHF_ISA {
namespace {

struct Slope {
  double loss, slope;
};

Slope pairLoss(PairLoss kind, double z) {
  // log1p(e^−|z|) + max(−z, 0) is −log σ(z) without overflow on either side.
  if (kind == PairLoss::Logistic) return {std::log1p(std::exp(-std::abs(z))) + std::max(-z, 0.0), -1 / (1 + std::exp(z))};
  return z < 0 ? Slope{-z, -1} : Slope{0, 0};
}

void requireRows(const RewardLoss& a) {
  for (int64_t p = 0; p < a.pairs; ++p) {
    requireIndex("rewardLoss", "chosen", p, a.chosen[p], a.rows);
    requireIndex("rewardLoss", "rejected", p, a.rejected[p], a.rows);
  }
  for (int64_t i = 0; i < a.answers; ++i) requireIndex("rewardLoss", "scored", i, a.scored[i], a.rows);
}

}  // namespace

void rewardLoss(OpContext&, const RewardLoss& a) {
  requireFloat32(a.type, "rewardLoss");
  requireRows(a);
  const auto in = [](const void* array) { return static_cast<const float*>(array); };
  float* dValue = static_cast<float*>(a.dValue);
  std::array<double, RewardLoss::kStatCount> sums{};
  std::fill_n(dValue, a.rows, 0.0f);

  for (int64_t p = 0; p < a.pairs; ++p) {
    const double chosen = in(a.value)[a.chosen[p]], rejected = in(a.value)[a.rejected[p]];
    const double margin = a.margin ? in(a.margin)[p] : 0.0f, label = a.label ? in(a.label)[p] : 1.0f;
    const double difference = chosen - rejected, total = chosen + rejected;
    const Slope wins = pairLoss(a.pairLoss, difference - margin), loses = pairLoss(a.pairLoss, -difference - margin);
    const double slope = label * wins.slope - (1 - label) * loses.slope, pull = 2 * a.centering * total;
    dValue[a.chosen[p]] += static_cast<float>(a.scale * (pull + slope));
    dValue[a.rejected[p]] += static_cast<float>(a.scale * (pull - slope));
    sums[RewardLoss::kLoss] += label * wins.loss + (1 - label) * loses.loss + a.centering * total * total;
    sums[RewardLoss::kPairs] += 1;
    sums[RewardLoss::kReward] += total;
    sums[RewardLoss::kRewards] += 2;
    if (label == 0.5) continue;
    const double lead = label > 0.5 ? difference : -difference;
    sums[RewardLoss::kDecided] += 1;
    sums[RewardLoss::kCorrect] += lead > 0 ? 1 : lead == 0 ? 0.5 : 0;
    sums[RewardLoss::kMargin] += lead;
  }

  for (int64_t i = 0; i < a.answers; ++i) {
    const double reward = in(a.value)[a.scored[i]], error = reward - in(a.score)[i];
    dValue[a.scored[i]] += static_cast<float>(2 * a.scoreWeight * a.scale * error);
    sums[RewardLoss::kLoss] += a.scoreWeight * error * error;
    sums[RewardLoss::kReward] += reward;
    sums[RewardLoss::kRewards] += 1;
    sums[RewardLoss::kAnswers] += 1;
    sums[RewardLoss::kSquaredError] += error * error;
  }
  for (size_t i = 0; i < sums.size(); ++i) static_cast<float*>(a.stats)[i] = static_cast<float>(sums[i]);
}

}  // namespace rlhf::RLHF_ISA
