#include <vector>

#include "ref/kernels.h"
#include "ref/predictions.h"

namespace rlhf::ref {
namespace {

/// log π and log π_ref of one prediction.
template <class T>
struct LogProbs {
  std::vector<T> policy, reference;
};

template <class T, class Arguments>
LogProbs<T> logProbsOf(const Arguments& a, int64_t p, Prediction prediction) {
  const auto [t, h] = prediction;
  LogProbs<T> z{std::vector<T>(static_cast<size_t>(a.vocab)), std::vector<T>(static_cast<size_t>(a.vocab))};
  if (a.logits)
    for (int64_t v = 0; v < a.vocab; ++v) z.policy[v] = in<T>(a.logits)[p * a.vocab + v];
  else
    logitsOf(in<T>(a.x) + h * a.cols, a.cols, a.head, a.temperature, a.vocab, z.policy.data());
  logitsOf(in<T>(a.refX) + h * a.refCols, a.refCols, a.refHead, a.temperature, a.vocab, z.reference.data());
  for (T& logit : z.policy) logit -= in<T>(a.lse)[t];
  for (T& logit : z.reference) logit -= in<T>(a.refLse)[t];
  return z;
}

template <class T>
void run(const KlDivergenceForward& a) {
  if (!a.logits) requirePlainHead("klDivergenceForward", "weight", a.head);
  requirePlainHead("klDivergenceForward", "refWeight", a.refHead);
  for (int64_t p = 0; p < a.count; ++p) {
    const Prediction prediction = predictionAt("klDivergenceForward", a, p);
    const LogProbs<T> logProbs = logProbsOf<T>(a, p, prediction);
    const bool reverse = a.direction == KlDirection::Reverse;
    T kl = 0;
    for (int64_t v = 0; v < a.vocab; ++v) {
      const T logA = reverse ? logProbs.policy[v] : logProbs.reference[v];
      const T logB = reverse ? logProbs.reference[v] : logProbs.policy[v];
      kl += std::exp(logA) * (logA - logB) - std::exp(logA) + std::exp(logB);
    }
    out<T>(a.kl)[prediction.t] = kl;
  }
}

template <class T>
void run(const KlDivergenceBackward& a) {
  requirePlainHead("klDivergenceBackward", "weight", a.head);
  requirePlainHead("klDivergenceBackward", "refWeight", a.refHead);
  for (int64_t p = 0; p < a.count; ++p) {
    const Prediction prediction = predictionAt("klDivergenceBackward", a, p);
    const auto [t, h] = prediction;
    const LogProbs<T> logProbs = logProbsOf<T>(a, p, prediction);
    for (int64_t v = 0; v < a.vocab; ++v) {
      const T logPolicy = logProbs.policy[v], logReference = logProbs.reference[v];
      const T slope = a.direction == KlDirection::Reverse
                          ? std::exp(logPolicy) * (logPolicy - logReference - in<T>(a.kl)[t])
                          : std::exp(logPolicy) - std::exp(logReference);
      addLogitGradient<T>(a, h, v, T(a.lossScale) * in<T>(a.dKl)[t] * slope / T(a.temperature));
    }
  }
}

}  // namespace

RLHF_REF_OP(klDivergenceForward, KlDivergenceForward)
RLHF_REF_OP(klDivergenceBackward, KlDivergenceBackward)

}  // namespace rlhf::ref
