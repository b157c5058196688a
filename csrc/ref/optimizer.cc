#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
void run(const AdamW& a) {
  const double step = static_cast<double>(a.step);
  const T correction1 = T(1 - std::pow(a.beta1, step)), correction2 = T(1 - std::pow(a.beta2, step));
  for (int64_t i = 0; i < a.count; ++i) {
    T& parameter = out<T>(a.parameter)[i];
    T& m = out<T>(a.m)[i];
    T& v = out<T>(a.v)[i];
    const T gradient = T(a.gradientScale) * in<T>(a.gradient)[i];
    parameter -= T(a.learningRate * a.weightDecay) * parameter;
    m = T(a.beta1) * m + T(1 - a.beta1) * gradient;
    v = T(a.beta2) * v + T(1 - a.beta2) * gradient * gradient;
    parameter -= T(a.learningRate) / correction1 * m / (std::sqrt(v / correction2) + T(a.eps));
  }
}

template <class T>
void run(const Narrow& a) {
  // Each of the oracle's types is its own accumulator type.
  for (int64_t i = 0; i < a.count; ++i) out<T>(a.y)[i] = T(a.scale) * in<T>(a.x)[i];
}

template <class T>
void run(const SquaredNorm& a) {
  double sum = 0;
  for (int64_t i = 0; i < a.count; ++i) {
    const double x = realPart(in<T>(a.x)[i]);
    sum += x * x;
  }
  a.out[0] = sum;
}

}  // namespace

RLHF_REF_OP(adamW, AdamW)
RLHF_REF_OP(narrow, Narrow)
RLHF_REF_OP(squaredNorm, SquaredNorm)

}  // namespace rlhf::ref
