#include <cstring>

#include "core/philox.h"
#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

/// Updates the moments of element i and returns what becomes of its weight.
template <class T>
T updated(const AdamW& a, int64_t i, T weight) {
  const double step = static_cast<double>(a.step);
  const T correction1 = T(1 - std::pow(a.beta1, step)), correction2 = T(1 - std::pow(a.beta2, step));
  T& m = out<T>(a.m)[i];
  T& v = out<T>(a.v)[i];
  const T gradient = T(a.gradientScale) * in<T>(a.gradient)[i];
  weight -= T(a.learningRate * a.weightDecay) * weight;
  m = T(a.beta1) * m + T(1 - a.beta1) * gradient;
  v = T(a.beta2) * v + T(1 - a.beta2) * gradient * gradient;
  return weight - T(a.learningRate) / correction1 * m / (std::sqrt(v / correction2) + T(a.eps));
}

template <class T>
void run(const AdamW& a) {
  T* const weights = out<T>(a.master ? a.master : a.parameter);
  for (int64_t i = 0; i < a.count; ++i) {
    weights[i] = updated(a, i, weights[i]);
    out<T>(a.parameter)[i] = weights[i];  // each of the oracle's types is its own accumulator type
  }
}

uint32_t randomBits(const AdamW& a, uint64_t i) {
  const PhiloxBlock block = philox(a.seed, (uint64_t{1} << 63) + static_cast<uint64_t>(a.step), i / 8);
  const uint32_t word = block.word[i % 8 / 2];
  return i % 2 == 0 ? word & 0xFFFF : word >> 16;
}

uint16_t roundedStochastically(float value, uint32_t bits) {
  if (!std::isfinite(value)) return floatToBfloat16(value);
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  const uint16_t nearer = static_cast<uint16_t>(word >> 16), farther = static_cast<uint16_t>(nearer + 1);  // to and from zero
  const double low = bfloat16ToFloat(nearer);
  // Beyond the largest number of the type the gap goes on as wide as the one before it.
  const double gap = nearer % 0x8000 == 0x7F7F ? low - bfloat16ToFloat(static_cast<uint16_t>(nearer - 1)) : bfloat16ToFloat(farther) - low;
  return (value - low) / gap * 65536 + bits >= 65536 ? farther : nearer;
}

void runRoundingStochastically(const AdamW& a) {
  uint16_t* const weights = out<uint16_t>(a.parameter);
  for (int64_t i = 0; i < a.count; ++i)
    weights[i] = roundedStochastically(updated(a, i, bfloat16ToFloat(weights[i])), randomBits(a, static_cast<uint64_t>(i)));
}

template <class T>
void run(const Narrow& a) {
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

void adamW(OpContext&, const AdamW& a) {
  if (a.type == DType::BF16 && !a.master) return runRoundingStochastically(a);
  dispatch("adamW", a.type, [&]<class T>(std::type_identity<T>) { run<T>(a); });
}

RLHF_REF_OP(narrow, Narrow)
RLHF_REF_OP(squaredNorm, SquaredNorm)

}  // namespace rlhf::ref
