#pragma once
#include "ref/scalar.h"

namespace rlhf::ref {

inline constexpr double kGeluSlope = 0.79788456080286535588;  // √(2/π)
inline constexpr double kGeluCubic = 0.044715;

template <class T>
T activate(Activation activation, const T& x) {
  switch (activation) {
    case Activation::None: return x;
    case Activation::GeluTanh:
      return T(0.5) * x * (T(1) + std::tanh(T(kGeluSlope) * (x + T(kGeluCubic) * x * x * x)));
    case Activation::GeluErf: return T(0.5) * x * (T(1) + erf(x * T(std::numbers::sqrt2 / 2)));
    case Activation::Tanh: return std::tanh(x);
    case Activation::Relu: return realPart(x) > 0 ? x : T(0);
    case Activation::Silu: return x * sigmoid(x);
  }
  return x;
}

/// activation'(x); 0 for Relu at 0.
template <class T>
T activationSlope(Activation activation, const T& x) {
  switch (activation) {
    case Activation::None: return T(1);
    case Activation::GeluTanh: {
      const T t = std::tanh(T(kGeluSlope) * (x + T(kGeluCubic) * x * x * x));
      const T inner = T(kGeluSlope) * (T(1) + T(3 * kGeluCubic) * x * x);
      return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * inner;
    }
    case Activation::GeluErf: {
      const T density = T(std::numbers::inv_sqrtpi * std::numbers::sqrt2 / 2) * std::exp(T(-0.5) * x * x);
      return T(0.5) * (T(1) + erf(x * T(std::numbers::sqrt2 / 2))) + x * density;
    }
    case Activation::Tanh: {
      const T t = std::tanh(x);
      return T(1) - t * t;
    }
    case Activation::Relu: return realPart(x) > 0 ? T(1) : T(0);
    case Activation::Silu: {
      const T s = sigmoid(x);
      return s * (T(1) + x * (T(1) - s));
    }
  }
  return T(1);
}

}  // namespace rlhf::ref
