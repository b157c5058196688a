#pragma once
#include <string>

#include "ref/scalar.h"

// What the ops over the vocabulary share.

namespace rlhf::ref {

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
  return {t, h};
}

/// `field` names the head's weight.
inline void requirePlainHead(const char* op, const char* field, const LinearWeight& head) {
  if (!head.data) throw Error(code::kArgument, format("%s: %s is null, and ref reads no packed forms", op, field));
}

/// z[v] = x · W[v] / temperature, for the row x of `cols` elements.
template <class T>
void logitsOf(const T* x, int64_t cols, const LinearWeight& head, double temperature, int64_t vocab, T* z) {
  const Parameter<T> weight(head.data, head.type);
  for (int64_t v = 0; v < vocab; ++v) {
    T sum = 0;
    for (int64_t c = 0; c < cols; ++c) sum += product(x[c], weight[v * cols + c], head.compute);
    z[v] = sum / T(temperature);
  }
}

/// dx[h] += dz·W[v] and, where it is wanted, dWeight[v] += dz·x[h].
template <class T, class Arguments>
void addLogitGradient(const Arguments& a, int64_t h, int64_t v, const T& gradient) {
  const Parameter<T> weight(a.head.data, a.head.type);
  for (int64_t c = 0; c < a.cols; ++c) {
    out<T>(a.dx)[h * a.cols + c] += product(gradient, weight[v * a.cols + c], a.head.compute);
    if (a.dWeight) out<T>(a.dWeight)[v * a.cols + c] += product(gradient, in<T>(a.x)[h * a.cols + c], a.head.compute);
  }
}

}  // namespace rlhf::ref
