#pragma once
#include "cpu/simd.h"
#include "ops/activation.h"

// Elementary functions on cpu/simd.h's vectors and the activations made of them. NaN goes in and comes out of each.

namespace rlhf::RLHF_ISA {

inline Vec abs(Vec x) { return std::bit_cast<Vec>(std::bit_cast<IntVec>(x) & 0x7fffffff); }

/// |magnitude| with the sign of `sign`.
inline Vec copySign(Vec magnitude, Vec sign) {
  const IntVec bits = (std::bit_cast<IntVec>(magnitude) & 0x7fffffff) | (std::bit_cast<IntVec>(sign) & INT32_MIN);
  return std::bit_cast<Vec>(bits);
}

/// 1 / (1 + e^−x), relative error about 3e-7.
inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

/// tanh x, relative error about 3e-7: an odd polynomial near 0, where 1 − 2 / (e^2x + 1) would cancel.
inline Vec tanh(Vec x) {
  const Vec magnitude = abs(x), square = x * x;
  Vec p = set1(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vec near = p * square * x + x;
  const Vec far = copySign(1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f), x);
  return magnitude > 0.625f ? far : near;
}

/// erf x, relative error about 2e-7: x·P(x²) near 0, else 1 − e^−(t + t·Q(t)) with t = |x|. P and Q are fits by iterated
/// weighted least squares, good to 2e-8.
inline Vec erf(Vec x) {
  const Vec magnitude = abs(x), square = x * x;
  Vec p = set1(-5.953485378995538e-4f);
  p = p * square + 4.985879175364971e-3f;
  p = p * square - 2.676166594028473e-2f;
  p = p * square + 1.1281680315732956e-1f;
  p = p * square - 3.761247992515564e-1f;
  p = p * square + 1.2837915122509003e-1f;
  const Vec near = p * x + x;

  const Vec t = min(magnitude, set1(4.0f));  // erf 4 rounds to 1
  Vec q = set1(1.1231542885070667e-5f);
  q = q * t - 3.2280615414492786e-4f;
  q = q * t + 3.642468014732003e-3f;
  q = q * t - 2.3762080818414688e-2f;
  q = q * t + 1.0623689740896225e-1f;
  q = q * t + 6.351513266563416e-1f;
  q = q * t + 1.2864848971366882e-1f;
  const Vec far = copySign(1.0f - exp(-(q * t + t)), x);
  return magnitude > 0.93f ? far : near;
}

inline constexpr float kSqrtHalf = 0.707106781f;        // 1/√2
inline constexpr float kSqrtTwoOverPi = 0.797884561f;   // √(2/π)
inline constexpr float kInverseSqrtTau = 0.398942280f;  // 1/√(2π)
inline constexpr float kGeluCubic = 0.044715f;

/// activation(x)
template <Activation activation>
inline Vec activate(Vec x) {
  if constexpr (activation == Activation::GeluTanh) {
    const Vec inner = kSqrtTwoOverPi * (x + kGeluCubic * x * x * x);
    return 0.5f * x * (1.0f + tanh(inner));
  } else if constexpr (activation == Activation::GeluErf) {
    return 0.5f * x * (1.0f + erf(x * kSqrtHalf));
  } else if constexpr (activation == Activation::Tanh) {
    return tanh(x);
  } else if constexpr (activation == Activation::Relu) {
    return x < 0.0f ? Vec{} : x;
  } else if constexpr (activation == Activation::Silu) {
    return x * sigmoid(x);
  } else {
    return x;
  }
}

/// activation'(x); ReLU's is 0 at 0.
template <Activation activation>
inline Vec activationDerivative(Vec x) {
  if constexpr (activation == Activation::GeluTanh) {
    const Vec square = x * x;
    const Vec t = tanh(kSqrtTwoOverPi * (x + kGeluCubic * square * x));
    const Vec slope = kSqrtTwoOverPi * (1.0f + 3.0f * kGeluCubic * square);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
  } else if constexpr (activation == Activation::GeluErf) {
    return 0.5f * (1.0f + erf(x * kSqrtHalf)) + x * kInverseSqrtTau * exp(-0.5f * x * x);
  } else if constexpr (activation == Activation::Tanh) {
    const Vec t = tanh(x);
    return 1.0f - t * t;
  } else if constexpr (activation == Activation::Relu) {
    return x != x ? x : (x > 0.0f ? set1(1.0f) : Vec{});
  } else if constexpr (activation == Activation::Silu) {
    const Vec s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  } else {
    return set1(1.0f);
  }
}

/// Calls body.template operator()<activation>() with the activation as a compile-time constant.
template <class Body>
inline void withActivation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::None: return body.template operator()<Activation::None>();
    case Activation::GeluTanh: return body.template operator()<Activation::GeluTanh>();
    case Activation::GeluErf: return body.template operator()<Activation::GeluErf>();
    case Activation::Tanh: return body.template operator()<Activation::Tanh>();
    case Activation::Relu: return body.template operator()<Activation::Relu>();
    case Activation::Silu: return body.template operator()<Activation::Silu>();
  }
}

}  // namespace rlhf::RLHF_ISA
