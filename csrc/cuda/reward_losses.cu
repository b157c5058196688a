// Losses of a reward model. A thread per pair or scored answer, in double as on the CPU. A row that several of them name gets its
// gradient from the first one, which adds the others' up.

#include "cuda/kernels.h"
#include "cuda/sums.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 256;

struct Slope {
  double loss, slope;
};

RLHF_DEVICE Slope pairLoss(PairLoss kind, double z) {
  // log1p(e^−|z|) + max(−z, 0) is −log σ(z) without overflow on either side.
  if (kind == PairLoss::Logistic) return {log1p(exp(-fabs(z))) + (z < 0 ? -z : 0), -1 / (1 + exp(z))};
  return z < 0 ? Slope{-z, -1} : Slope{0, 0};
}

/// One pair: what its loss consists of, and the gradients of its two rewards.
struct RewardPair {
  double loss, difference, total, label, dChosen, dRejected;
};

struct RewardTerms {
  RewardLoss a;

  /// NaN outside the batch.
  RLHF_DEVICE double valueAt(int32_t row) const {
    return row >= 0 && row < a.rows ? static_cast<const float*>(a.value)[row] : static_cast<double>(NAN);
  }

  RLHF_DEVICE RewardPair pair(int64_t p) const {
    const auto optional = [&](const void* array, double otherwise) { return array ? static_cast<const float*>(array)[p] : otherwise; };
    const double chosen = valueAt(a.chosen[p]), rejected = valueAt(a.rejected[p]);
    const double margin = optional(a.margin, 0), label = optional(a.label, 1);
    const double difference = chosen - rejected, total = chosen + rejected;
    const Slope wins = pairLoss(a.pairLoss, difference - margin), loses = pairLoss(a.pairLoss, -difference - margin);
    const double slope = label * wins.slope - (1 - label) * loses.slope, pull = 2 * a.centering * total;
    return {label * wins.loss + (1 - label) * loses.loss + a.centering * total * total, difference, total, label,
            a.scale * (pull + slope), a.scale * (pull - slope)};
  }

  RLHF_DEVICE double errorOf(int64_t answer) const { return valueAt(a.scored[answer]) - static_cast<const float*>(a.score)[answer]; }

  // Every name of a row: chosen and rejected ones by turns, then those of scored answers.

  RLHF_DEVICE int64_t names() const { return 2 * a.pairs + a.answers; }

  RLHF_DEVICE int32_t rowOf(int64_t name) const {
    if (name >= 2 * a.pairs) return a.scored[name - 2 * a.pairs];
    return name % 2 == 0 ? a.chosen[name / 2] : a.rejected[name / 2];
  }

  RLHF_DEVICE double gradientOf(int64_t name) const {
    if (name >= 2 * a.pairs) return 2 * a.scoreWeight * a.scale * errorOf(name - 2 * a.pairs);
    const RewardPair both = pair(name / 2);
    return name % 2 == 0 ? both.dChosen : both.dRejected;
  }

  /// The statistics of a pair, or of an answer behind the pairs.
  RLHF_DEVICE void operator()(int64_t i, double (&sums)[RewardLoss::kStatCount]) const {
    if (i >= a.pairs) {
      const double error = errorOf(i - a.pairs);
      sums[RewardLoss::kLoss] += a.scoreWeight * error * error;
      sums[RewardLoss::kReward] += valueAt(a.scored[i - a.pairs]);
      sums[RewardLoss::kRewards] += 1;
      sums[RewardLoss::kAnswers] += 1;
      sums[RewardLoss::kSquaredError] += error * error;
      return;
    }
    const RewardPair each = pair(i);
    sums[RewardLoss::kLoss] += each.loss;
    sums[RewardLoss::kPairs] += 1;
    sums[RewardLoss::kReward] += each.total;
    sums[RewardLoss::kRewards] += 2;
    if (each.label == 0.5) return;
    const double lead = each.label > 0.5 ? each.difference : -each.difference;
    sums[RewardLoss::kDecided] += 1;
    sums[RewardLoss::kCorrect] += lead > 0 ? 1 : lead == 0 ? 0.5 : 0;
    sums[RewardLoss::kMargin] += lead;
  }
};

__global__ void __launch_bounds__(kThreads) clearKernel(float* x, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) x[i] = 0;
}

__global__ void __launch_bounds__(kThreads) rewardGradientKernel(const __grid_constant__ RewardTerms terms) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, names = terms.names();
  if (own >= names) return;
  const int32_t row = terms.rowOf(own);
  if (row < 0 || row >= terms.a.rows) return;
  for (int64_t name = 0; name < own; ++name)
    if (terms.rowOf(name) == row) return;
  double sum = terms.gradientOf(own);
  for (int64_t name = own + 1; name < names; ++name)
    if (terms.rowOf(name) == row) sum += terms.gradientOf(name);
  static_cast<float*>(terms.a.dValue)[row] = static_cast<float>(sum);
}

dim3 blocksFor(int64_t count) { return dim3(static_cast<uint32_t>((count + kThreads - 1) / kThreads)); }

}  // namespace

void rewardLoss(OpContext& context, const RewardLoss& a) {
  requireFloatSums(a.type, "rewardLoss");
  const RewardTerms terms{a};
  launchSumEach<RewardLoss::kStatCount>(context, "rewardLoss", a.pairs + a.answers, terms, static_cast<float*>(a.stats));
  RLHF_LAUNCH(clearKernel, blocksFor(a.rows), dim3(kThreads), 0, context.stream, static_cast<float*>(a.dValue), a.rows);
  if (const int64_t names = 2 * a.pairs + a.answers; names > 0)
    RLHF_LAUNCH(rewardGradientKernel, blocksFor(names), dim3(kThreads), 0, context.stream, terms);
}

}  // namespace rlhf::cuda
