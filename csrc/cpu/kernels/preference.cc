#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "ops/preference_math.h"

// A few numbers per pair: plain loops on the calling thread, in double as in losses.cc.

namespace rlhf::RLHF_ISA {
namespace {

using preference::at;
float* out(void* array) { return static_cast<float*>(array); }
void add(void* array, int64_t index, double value) {
  out(array)[index] = static_cast<float>(at(array, index) + value);
}

template <size_t Count>
void writeStats(void* stats, const std::array<double, Count>& sums) {
  for (size_t i = 0; i < Count; ++i) out(stats)[i] = static_cast<float>(sums[i]);
}

template <class Arguments>
void requirePairs(const char* op, const Arguments& a) {
  for (int64_t p = 0; p < a.pairs; ++p) {
    requireIndex(op, "chosen", p, a.chosen[p], a.sequences);
    requireIndex(op, "rejected", p, a.rejected[p], a.sequences);
  }
}

double meanAlignedLogProb(const WpoWeight& a, int64_t sequence) {
  double sum = 0;
  int64_t tokens = 0;
  for (int64_t t = a.offsets[sequence]; t < a.offsets[sequence + 1]; ++t) {
    if (at(a.mask, t) == 0) continue;
    sum += at(a.logProb, t) - (at(a.lseHalf, t) - 2 * at(a.lse, t));
    ++tokens;
  }
  if (tokens == 0)
    throw Error(code::kArgument, format("wpoWeight: mask selects no token of sequence %lld",
                                        static_cast<long long>(sequence)));
  return sum / static_cast<double>(tokens);
}

preference::Answer answerOf(const PreferenceLoss& a, int64_t sequence) {
  const double logProb = at(a.logProb, sequence);
  double tokens = 1;
  if (a.lengthNormalized || a.statsPerToken) {
    if (a.tokens[sequence] < 1)
      throw Error(code::kArgument, format("preferenceLoss: tokens[%lld] is %d, expected 1 or more",
                                          static_cast<long long>(sequence), a.tokens[sequence]));
    tokens = a.tokens[sequence];
  }
  return {logProb, a.refLogProb ? logProb - at(a.refLogProb, sequence) : logProb, a.lengthNormalized ? tokens : 1,
          a.statsPerToken ? tokens : 1};
}

/// order[0 … count) sorts the values.
template <class Value>
void sortedOrder(int32_t* order, int64_t count, const Value& value) {
  std::iota(order, order + count, 0);
  std::sort(order, order + count, [&](int32_t i, int32_t j) { return preference::isBefore(value(i), i, value(j), j); });
}

/// The summed loss of margins between sorted values; adds its gradients to dLogProb.
double sortedLoss(const PreferenceLoss& a) {
  const preference::SortedValues values{a};
  sortedOrder(a.order, a.pairs, [&](int32_t p) { return values.upper(p); });
  sortedOrder(a.order + a.pairs, a.pairs, [&](int32_t p) { return values.lower(p); });
  double loss = 0;
  for (int64_t k = 0; k < a.pairs; ++k) {
    const preference::SortedPair f = preference::sortedPair(a, k);
    loss += f.loss.value;
    add(a.dLogProb, f.chosen, a.scale * a.beta * f.loss.slope);
    add(a.dLogProb, f.rejected, -a.scale * a.beta * f.loss.slope);
  }
  return loss;
}

}  // namespace

void sequenceSum(OpContext&, const SequenceSum& a) {
  requireFloat32(a.type, "sequenceSum");
  for (int64_t s = 0; s < a.sequences; ++s) {
    double sum = 0;
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t)
      if (at(a.weight, t) != 0) sum += at(a.weight, t) * at(a.x, t);
    out(a.sum)[s] = static_cast<float>(sum);
  }
}

void sequenceSumBackward(OpContext&, const SequenceSumBackward& a) {
  requireFloat32(a.type, "sequenceSumBackward");
  for (int64_t s = 0; s < a.sequences; ++s) {
    for (int64_t t = a.offsets[s]; t < a.offsets[s + 1]; ++t) {
      const double base = a.base ? at(a.base, t) : 0, weight = at(a.weight, t);
      out(a.dx)[t] = static_cast<float>(weight != 0 ? base + weight * at(a.dSum, s) : base);
    }
  }
}

void wpoWeight(OpContext&, const WpoWeight& a) {
  requireFloat32(a.type, "wpoWeight");
  requirePairs("wpoWeight", a);
  for (int64_t p = 0; p < a.pairs; ++p) {
    const double exponent = meanAlignedLogProb(a, a.chosen[p]) + meanAlignedLogProb(a, a.rejected[p]);
    out(a.weight)[p] = static_cast<float>(std::exp(exponent));
  }
}

void preferenceLoss(OpContext&, const PreferenceLoss& a) {
  using Loss = PreferenceLoss;
  requireFloat32(a.type, "preferenceLoss");
  requirePairs("preferenceLoss", a);
  for (int64_t s = 0; s < a.sequences; ++s) out(a.dLogProb)[s] = a.base ? static_cast<float>(at(a.base, s)) : 0.0f;
  std::array<double, Loss::kStatCount> sums{};
  const bool sorts = a.kind == PreferenceKind::Aot || a.kind == PreferenceKind::AotUnpaired;
  if (sorts) sums[Loss::kLoss] = sortedLoss(a);
  for (int64_t p = 0; p < a.pairs; ++p) {
    const preference::Answer chosen = answerOf(a, a.chosen[p]), rejected = answerOf(a, a.rejected[p]);
    if (!sorts) {
      const preference::PairLoss f = preference::pairLoss(a, chosen, rejected);
      const double weight = a.pairWeight ? at(a.pairWeight, p) : 1;
      sums[Loss::kLoss] += weight * f.loss;
      add(a.dLogProb, a.chosen[p], a.scale * weight * f.dChosen);
      add(a.dLogProb, a.rejected[p], a.scale * weight * f.dRejected);
    }
    preference::addStatistics(a, chosen, rejected, sums.data());
  }
  writeStats(a.stats, sums);
}

void ktoLoss(OpContext&, const KtoLoss& a) {
  requireFloat32(a.type, "ktoLoss");
  std::array<double, KtoLoss::kStatCount> sums{};
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int32_t label = a.label[s];
    if (label < -1 || label > 1)
      throw Error(code::kArgument, format("ktoLoss: label[%lld] is %d, expected 1, -1 or 0",
                                          static_cast<long long>(s), label));
    out(a.dLogProb)[s] = static_cast<float>(preference::ktoAnswer(a, s, sums.data()));
  }
  writeStats(a.stats, sums);
}

}  // namespace rlhf::RLHF_ISA
