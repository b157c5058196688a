#pragma once
#include <cmath>
#include <complex>
#include <numbers>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "ops/ops.h"

// What every op of the oracle is written with. An op is a template over its scalar type: float, double, or
// complex<double>. A complex input x + i·h·d yields f(x) + i·h·f'(x)·d to the last bit of h (Squire & Trapp, "Using
// complex variables to estimate derivatives of real functions", SIAM Review 1998), so functions here are analytic
// wherever the op is smooth, and decisions (maximum, clip, sign) look at the real part alone.

namespace rlhf::ref {

using Complex = std::complex<double>;

inline double realPart(float value) { return value; }
inline double realPart(double value) { return value; }
inline double realPart(const Complex& value) { return value.real(); }

inline float erf(float x) { return std::erf(x); }
inline double erf(double x) { return std::erf(x); }
/// First order in the imaginary part, which is exact for a complex step.
inline Complex erf(const Complex& x) {
  const double slope = 2 * std::numbers::inv_sqrtpi * std::exp(-x.real() * x.real());
  return {std::erf(x.real()), slope * x.imag()};
}

inline float log1p(float x) { return std::log1p(x); }
inline double log1p(double x) { return std::log1p(x); }
inline Complex log1p(const Complex& x) { return {std::log1p(x.real()), x.imag() / (1 + x.real())}; }

inline float expm1(float x) { return std::expm1(x); }
inline double expm1(double x) { return std::expm1(x); }
inline Complex expm1(const Complex& x) { return {std::expm1(x.real()), std::exp(x.real()) * x.imag()}; }

/// 1 / (1 + e^(−x)) without overflow.
template <class T>
T sigmoid(const T& x) {
  if (realPart(x) >= 0) return T(1) / (T(1) + std::exp(-x));
  const T e = std::exp(x);
  return e / (T(1) + e);
}

/// −log σ(x) = log(1 + e^(−x)) without overflow.
template <class T>
T negativeLogSigmoid(const T& x) {
  return realPart(x) >= 0 ? log1p(std::exp(-x)) : log1p(std::exp(x)) - x;
}

template <class T>
T clip(const T& x, const T& low, const T& high) {
  if (realPart(x) < realPart(low)) return low;
  if (realPart(x) > realPart(high)) return high;
  return x;
}

template <class T>
const T* in(const void* array) {
  return static_cast<const T*>(array);
}
template <class T>
T* out(void* array) {
  return static_cast<T*>(array);
}

/// Read access to a parameter, or a cache, whose type need not be that of the activations.
template <class T>
class Parameter {
 public:
  Parameter(const void* data, DType type) : data_(data), type_(type) {
    if (!std::is_same_v<T, Complex> && type == DType::C128)
      throw Error(code::kUnsupported, "ref: a complex weight needs complex activations");
  }

  T operator[](int64_t index) const {
    switch (type_) {
      case DType::F64: return T(in<double>(data_)[index]);
      case DType::F16: return T(halfToFloat(in<uint16_t>(data_)[index]));
      case DType::BF16: return T(bfloat16ToFloat(in<uint16_t>(data_)[index]));
      case DType::C128:
        if constexpr (std::is_same_v<T, Complex>) return in<Complex>(data_)[index];
        [[fallthrough]];
      default: return T(in<float>(data_)[index]);
    }
  }

 private:
  const void* data_;
  DType type_;
};

/// The bfloat16 nearest to a number.
inline double nearestBfloat16(double value) { return bfloat16ToFloat(floatToBfloat16(static_cast<float>(value))); }

/// A link of a matrix product's sum, its factors rounded or split as `compute` says. That counts as constant, so that a complex step
/// goes through it.
template <class T>
T product(const T& left, const T& right, DType compute) {
  const double x = realPart(left), y = realPart(right);
  if (compute == DType::BF16) return (left + T(nearestBfloat16(x) - x)) * (right + T(nearestBfloat16(y) - y));
  if (compute != DType::BF16X3) return left * right;
  const double highX = nearestBfloat16(x), lowX = nearestBfloat16(x - highX), highY = nearestBfloat16(y), lowY = nearestBfloat16(y - highY);
  return (left + T(highX + lowX - x)) * (right + T(highY + lowY - y)) - T(lowX * lowY);
}

/// Calls body(std::type_identity<T>) for the scalar type that `type` names. 16-bit types have no oracle of their own:
/// theirs is the float64 one on the rounded inputs.
template <class Body>
void dispatch(const char* op, DType type, Body&& body) {
  switch (type) {
    case DType::F32: return body(std::type_identity<float>{});
    case DType::F64: return body(std::type_identity<double>{});
    case DType::C128: return body(std::type_identity<Complex>{});
    default: break;
  }
  throw Error(code::kUnsupported,
              format("%s: ref has no %s, use float32, float64 or complex128", op, dtypeName(type)));
}

/// Defines the op `name` from the template run<T>(const Arguments&).
#define RLHF_REF_OP(name, Arguments)                                                             \
  void name(OpContext&, const Arguments& arguments) {                                            \
    dispatch(#name, arguments.type, [&]<class T>(std::type_identity<T>) { run<T>(arguments); }); \
  }

/// Throws unless `offsets` cut `rows` into `sequences` runs in rising order.
inline void checkOffsets(const char* op, const int32_t* offsets, int64_t sequences, int64_t rows) {
  const auto fail = [&](int64_t s, const std::string& expected) {
    throw Error(code::kArgument, std::string(op) + ": offsets[" + std::to_string(s) + "] is " +
                                     std::to_string(offsets[s]) + ", expected " + expected);
  };
  if (offsets[0] != 0) fail(0, "0");
  for (int64_t s = 1; s <= sequences; ++s)
    if (offsets[s] < offsets[s - 1]) fail(s, "at least " + std::to_string(offsets[s - 1]));
  if (offsets[sequences] != rows) fail(sequences, "rows = " + std::to_string(rows));
}

/// Throws unless 0 ≤ index < limit; `errorCode` is kTokenRange for tokens.
inline void checkIndex(const char* op, const char* field, int64_t at, int64_t index, int64_t limit,
                       const char* errorCode = code::kArgument) {
  if (index >= 0 && index < limit) return;
  throw Error(errorCode, std::string(op) + ": " + field + "[" + std::to_string(at) + "] is " +
                             std::to_string(index) + ", expected 0 to " + std::to_string(limit - 1));
}

}  // namespace rlhf::ref
