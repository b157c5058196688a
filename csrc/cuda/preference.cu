// Losses that compare whole answers, by the formulas that the CPU has (ops/preference_math.h). Sums go sequence by sequence, a warp
// each; statistics are a thread per pair; each sequence then gathers the gradients of the pairs that name it, in their order.

#include "cuda/kernels.h"
#include "cuda/sequences.cuh"
#include "cuda/sums.cuh"
#include "ops/preference_math.h"

namespace rlhf::cuda {
namespace {

using preference::at;

constexpr int kThreads = 128;

RLHF_DEVICE float& out(void* array, int64_t index) { return static_cast<float*>(array)[index]; }

struct SumOfSequence {
  SequenceSum a;

  RLHF_DEVICE void operator()(int64_t s, int lane) const {
    double sum = 0;
    for (int64_t t = a.offsets[s] + lane; t < a.offsets[s + 1]; t += 32)
      if (at(a.weight, t) != 0) sum += at(a.weight, t) * at(a.x, t);
    sum = groupSum(sum);
    if (lane == 0) out(a.sum, s) = static_cast<float>(sum);
  }
};

struct GradientOfSequence {
  SequenceSumBackward a;

  RLHF_DEVICE void operator()(int64_t s, int lane) const {
    for (int64_t t = a.offsets[s] + lane; t < a.offsets[s + 1]; t += 32) {
      const double base = a.base ? at(a.base, t) : 0, weight = at(a.weight, t);
      out(a.dx, t) = static_cast<float>(weight != 0 ? base + weight * at(a.dSum, s) : base);
    }
  }
};

/// The weight of a pair, by a warp; NaN where an answer has no token or is no sequence of the batch.
struct WeightOfPair {
  WpoWeight a;

  RLHF_DEVICE double meanAlignedLogProb(int64_t s, int lane) const {
    if (s < 0 || s >= a.sequences) return NAN;
    double sum = 0, tokens = 0;
    for (int64_t t = a.offsets[s] + lane; t < a.offsets[s + 1]; t += 32) {
      if (at(a.mask, t) == 0) continue;
      sum += at(a.logProb, t) - (at(a.lseHalf, t) - 2 * at(a.lse, t));
      tokens += 1;
    }
    sum = groupSum(sum);
    return sum / groupSum(tokens);
  }

  RLHF_DEVICE void operator()(int64_t p, int lane) const {
    const double exponent = meanAlignedLogProb(a.chosen[p], lane) + meanAlignedLogProb(a.rejected[p], lane);
    if (lane == 0) out(a.weight, p) = static_cast<float>(exp(exponent));
  }
};

bool sorts(const PreferenceLoss& a) { return a.kind == PreferenceKind::Aot || a.kind == PreferenceKind::AotUnpaired; }

/// An answer's numbers; NaN where it is no sequence of the batch or has no tokens to divide by.
RLHF_DEVICE preference::Answer answerOf(const PreferenceLoss& a, int32_t sequence) {
  double tokens = 1;
  const bool isKnown = sequence >= 0 && sequence < a.sequences;
  if (isKnown && (a.lengthNormalized || a.statsPerToken)) tokens = a.tokens[sequence];
  if (!isKnown || tokens < 1) return {NAN, NAN, 1, 1};
  const double logProb = at(a.logProb, sequence);
  return {logProb, a.refLogProb ? logProb - at(a.refLogProb, sequence) : logProb, a.lengthNormalized ? tokens : 1,
          a.statsPerToken ? tokens : 1};
}

/// The gradients of one pair, each to be added to its sequence.
struct PairGradients {
  int32_t chosen, rejected;
  double dChosen, dRejected;
};

/// Statistics and gradients of pairs as they are given.
struct GivenPairs {
  PreferenceLoss a;

  RLHF_DEVICE void operator()(int64_t p, double (&sums)[PreferenceLoss::kStatCount]) const {
    const preference::Answer chosen = answerOf(a, a.chosen[p]), rejected = answerOf(a, a.rejected[p]);
    sums[PreferenceLoss::kLoss] += weightOf(p) * preference::pairLoss(a, chosen, rejected).loss;
    preference::addStatistics(a, chosen, rejected, sums);
  }

  RLHF_DEVICE bool names(int64_t p, int64_t sequence) const { return a.chosen[p] == sequence || a.rejected[p] == sequence; }

  RLHF_DEVICE PairGradients gradients(int64_t p) const {
    const auto f = preference::pairLoss(a, answerOf(a, a.chosen[p]), answerOf(a, a.rejected[p]));
    return {a.chosen[p], a.rejected[p], a.scale * weightOf(p) * f.dChosen, a.scale * weightOf(p) * f.dRejected};
  }

 private:
  RLHF_DEVICE double weightOf(int64_t p) const { return a.pairWeight ? at(a.pairWeight, p) : 1; }
};

/// Statistics of pairs as they are given, loss and gradients of pairs as they are sorted.
struct SortedPairs {
  PreferenceLoss a;

  RLHF_DEVICE void operator()(int64_t k, double (&sums)[PreferenceLoss::kStatCount]) const {
    sums[PreferenceLoss::kLoss] += preference::sortedPair(a, k).loss.value;
    preference::addStatistics(a, answerOf(a, a.chosen[k]), answerOf(a, a.rejected[k]), sums);
  }

  RLHF_DEVICE bool names(int64_t k, int64_t sequence) const {
    const int32_t up = a.order[k], low = a.kind == PreferenceKind::AotUnpaired ? a.order[a.pairs + k] : up;
    return a.chosen[up] == sequence || a.rejected[low] == sequence;
  }

  RLHF_DEVICE PairGradients gradients(int64_t k) const {
    const preference::SortedPair pair = preference::sortedPair(a, k);
    const double gradient = a.scale * a.beta * pair.loss.slope;
    return {pair.chosen, pair.rejected, gradient, -gradient};
  }
};

/// A pair's place in a sorted order is the number of pairs before it. blockIdx.y is 0 for the upper values and 1 for the lower.
__global__ void __launch_bounds__(kThreads) sortKernel(const __grid_constant__ PreferenceLoss a) {
  const int32_t own = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (own >= a.pairs) return;
  const preference::SortedValues values{a};
  const auto valueOf = [&](int32_t p) { return blockIdx.y == 0 ? values.upper(p) : values.lower(p); };
  const double value = valueOf(own);
  int64_t place = 0;
  for (int32_t p = 0; p < a.pairs; ++p) place += preference::isBefore(valueOf(p), p, value, own);
  a.order[blockIdx.y * a.pairs + place] = own;
}

/// dLogProb of a sequence: base, and what the pairs that name it add.
template <class Pairs>
__global__ void __launch_bounds__(kThreads) preferenceGradientKernel(const __grid_constant__ Pairs pairs) {
  const PreferenceLoss& a = pairs.a;
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (s >= a.sequences) return;
  double sum = a.base ? at(a.base, s) : 0;
  for (int64_t p = 0; p < a.pairs; ++p) {
    if (!pairs.names(p, s)) continue;
    const PairGradients f = pairs.gradients(p);
    if (f.chosen == s) sum += f.dChosen;
    if (f.rejected == s) sum += f.dRejected;
  }
  out(a.dLogProb, s) = static_cast<float>(sum);
}

dim3 blocksFor(int64_t count, uint32_t y = 1) { return dim3(static_cast<uint32_t>((count + kThreads - 1) / kThreads), y); }

template <class Pairs>
void launchPairs(OpContext& context, const Pairs& pairs) {
  launchSumEach<PreferenceLoss::kStatCount>(context, "preferenceLoss", pairs.a.pairs, pairs, static_cast<float*>(pairs.a.stats));
  RLHF_LAUNCH(preferenceGradientKernel<Pairs>, blocksFor(pairs.a.sequences), dim3(kThreads), 0, context.stream, pairs);
}

/// A label other than 1, −1 and 0 makes gradient and loss NaN.
struct KtoAnswers {
  KtoLoss a;

  RLHF_DEVICE void operator()(int64_t s, double (&sums)[KtoLoss::kStatCount]) const {
    const bool isKnown = a.label[s] >= -1 && a.label[s] <= 1;
    if (!isKnown) sums[KtoLoss::kLoss] = NAN;
    out(a.dLogProb, s) = isKnown ? static_cast<float>(preference::ktoAnswer(a, s, sums)) : NAN;
  }
};

}  // namespace

void sequenceSum(OpContext& context, const SequenceSum& a) {
  requireFloatSums(a.type, "sequenceSum");
  launchSequences(context, a.sequences, SumOfSequence{a});
}

void sequenceSumBackward(OpContext& context, const SequenceSumBackward& a) {
  requireFloatSums(a.type, "sequenceSumBackward");
  launchSequences(context, a.sequences, GradientOfSequence{a});
}

void wpoWeight(OpContext& context, const WpoWeight& a) {
  requireFloatSums(a.type, "wpoWeight");
  launchSequences(context, a.pairs, WeightOfPair{a});
}

void preferenceLoss(OpContext& context, const PreferenceLoss& a) {
  requireFloatSums(a.type, "preferenceLoss");
  if (!sorts(a)) return launchPairs(context, GivenPairs{a});
  RLHF_LAUNCH(sortKernel, blocksFor(a.pairs, 2), dim3(kThreads), 0, context.stream, a);
  launchPairs(context, SortedPairs{a});
}

void ktoLoss(OpContext& context, const KtoLoss& a) {
  requireFloatSums(a.type, "ktoLoss");
  launchSumEach<KtoLoss::kStatCount>(context, "ktoLoss", a.sequences, KtoAnswers{a}, static_cast<float*>(a.stats));
}

}  // namespace rlhf::cuda
