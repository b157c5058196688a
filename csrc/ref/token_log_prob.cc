#include <string>
#include <vector>

#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

/// Token t, predicted from hidden row h.
struct Prediction {
  int64_t t, h;
};

template <class Arguments>
Prediction predictionAt(const char* op, const Arguments& a, int64_t p) {
  const int64_t t = a.predictions[p], h = a.sources[p];
  checkIndex(op, "predictions", p, t, a.rows);
  checkIndex(op, "sources", p, h, a.rows);
  if (p > 0 && h < a.sources[p - 1])
    throw Error(code::kArgument, std::string(op) + ": sources[" + std::to_string(p) + "] is " + std::to_string(h) +
                                     ", expected at least the one before, " + std::to_string(a.sources[p - 1]));
  checkIndex(op, "tokens", t, a.tokens[t], a.vocab, code::kTokenRange);
  return {t, h};
}

template <class Arguments>
void requirePlainHead(const char* op, const Arguments& a) {
  if (!a.head.data)
    throw Error(code::kArgument, format("%s: weight is null, and ref reads no packed forms", op));
}

/// z[v] = x · W[v] / temperature
template <class T, class Arguments>
void logitsOf(const Arguments& a, int64_t hiddenRow, T* z) {
  const Parameter<T> weight(a.head.data, a.head.type);
  const T* x = in<T>(a.x) + hiddenRow * a.cols;
  for (int64_t v = 0; v < a.vocab; ++v) {
    T sum = 0;
    for (int64_t c = 0; c < a.cols; ++c) sum += x[c] * weight[v * a.cols + c];
    z[v] = sum / T(a.temperature);
  }
}

template <class T>
void run(const TokenLogProbForward& a) {
  requirePlainHead("tokenLogProbForward", a);
  std::vector<T> z(static_cast<size_t>(a.vocab));
  for (int64_t p = 0; p < a.count; ++p) {
    const auto [t, h] = predictionAt("tokenLogProbForward", a, p);
    logitsOf(a, h, z.data());
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
  requirePlainHead("tokenLogProbBackward", a);
  const Parameter<T> weight(a.head.data, a.head.type);
  std::vector<T> z(static_cast<size_t>(a.vocab));
  for (int64_t p = 0; p < a.count; ++p) {
    const auto [t, h] = predictionAt("tokenLogProbBackward", a, p);
    if (a.logits)
      for (int64_t v = 0; v < a.vocab; ++v) z[v] = in<T>(a.logits)[p * a.vocab + v];
    else
      logitsOf(a, h, z.data());
    const T dLogProb = gradientAt<T>(a.dLogProb, t), dLse = gradientAt<T>(a.dLse, t);
    const T dEntropy = gradientAt<T>(a.dEntropy, t), entropy = in<T>(a.entropy)[t];
    for (int64_t v = 0; v < a.vocab; ++v) {
      const T logProbability = z[v] - in<T>(a.lse)[t];
      const T probability = std::exp(logProbability);
      const T hit = v == a.tokens[t] ? T(1) : T(0);
      const T dz = (dLogProb * (hit - probability) + dLse * probability -
                    dEntropy * probability * (logProbability + entropy)) / T(a.temperature);
      for (int64_t c = 0; c < a.cols; ++c) {
        out<T>(a.dx)[h * a.cols + c] += dz * weight[v * a.cols + c];
        if (a.dWeight) out<T>(a.dWeight)[v * a.cols + c] += dz * in<T>(a.x)[h * a.cols + c];
      }
    }
  }
}

}  // namespace

RLHF_REF_OP(tokenLogProbForward, TokenLogProbForward)
RLHF_REF_OP(tokenLogProbBackward, TokenLogProbBackward)

}  // namespace rlhf::ref
