#include <vector>

#include "ref/kernels.h"
#include "ref/predictions.h"

namespace rlhf::ref {
namespace {

/// Also checks the token itself.
template <class Arguments>
Prediction tokenPredictionAt(const char* op, const Arguments& a, int64_t p) {
  const Prediction prediction = predictionAt(op, a, p);
  checkIndex(op, "tokens", prediction.t, a.tokens[prediction.t], a.vocab, code::kTokenRange);
  return prediction;
}

template <class T>
void run(const TokenLogProbForward& a) {
  requirePlainHead("tokenLogProbForward", "weight", a.head);
  std::vector<T> z(static_cast<size_t>(a.vocab));
  for (int64_t p = 0; p < a.count; ++p) {
    const auto [t, h] = tokenPredictionAt("tokenLogProbForward", a, p);
    logitsOf(in<T>(a.x) + h * a.cols, a.cols, a.head, a.temperature, a.vocab, z.data());
    T largest = z[0];
    for (const T& logit : z)
      if (realPart(logit) > realPart(largest)) largest = logit;
    T total = 0, weighted = 0;
    for (const T& logit : z) {
      const T e = std::exp(logit - largest);
      total += e;
      weighted += e * (logit - largest);
    }
    out<T>(a.lse)[t] = largest + std::log(total);
    out<T>(a.logProb)[t] = z[a.tokens[t]] - largest - std::log(total);
    out<T>(a.entropy)[t] = std::log(total) - weighted / total;
    if (a.logits)
      for (int64_t v = 0; v < a.vocab; ++v) out<T>(a.logits)[p * a.vocab + v] = z[v];
  }
}

/// The gradient of a per-token output, 0 where that output is not used.
template <class T>
T gradientAt(const void* gradient, int64_t t) {
  return gradient ? in<T>(gradient)[t] : T(0);
}

template <class T>
void run(const TokenLogProbBackward& a) {
  requirePlainHead("tokenLogProbBackward", "weight", a.head);
  std::vector<T> z(static_cast<size_t>(a.vocab));
  for (int64_t p = 0; p < a.count; ++p) {
    const auto [t, h] = tokenPredictionAt("tokenLogProbBackward", a, p);
    if (a.logits)
      for (int64_t v = 0; v < a.vocab; ++v) z[v] = in<T>(a.logits)[p * a.vocab + v];
    else
      logitsOf(in<T>(a.x) + h * a.cols, a.cols, a.head, a.temperature, a.vocab, z.data());
    const T dLogProb = gradientAt<T>(a.dLogProb, t), dLse = gradientAt<T>(a.dLse, t);
    const T dEntropy = gradientAt<T>(a.dEntropy, t), entropy = in<T>(a.entropy)[t];
    for (int64_t v = 0; v < a.vocab; ++v) {
      const T logProbability = z[v] - in<T>(a.lse)[t];
      const T probability = std::exp(logProbability);
      const T hit = v == a.tokens[t] ? T(1) : T(0);
      const T gradient = dLogProb * (hit - probability) + dLse * probability -
                         dEntropy * probability * (logProbability + entropy);
      addLogitGradient<T>(a, h, v, T(a.lossScale) * gradient / T(a.temperature));
    }
  }
}

}  // namespace

RLHF_REF_OP(tokenLogProbForward, TokenLogProbForward)
RLHF_REF_OP(tokenLogProbBackward, TokenLogProbBackward)

}  // namespace rlhf::ref
