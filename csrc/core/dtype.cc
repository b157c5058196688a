#include "core/dtype.h"

#include <bit>
#include <cstring>

#include "core/error.h"

namespace rlhf {

const char* dtypeName(DType type) {
  switch (type) {
    case DType::F32: return "float32";
    case DType::F64: return "float64";
    case DType::F16: return "float16";
    case DType::BF16: return "bfloat16";
    case DType::C128: return "complex128";
    case DType::I32: return "int32";
    case DType::BF16X3: return "bfloat16x3";
  }
  return "unknown";
}

float halfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormals are exact in float32
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

uint16_t floatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) {  // result is subnormal: adding 0.5 ulp of the target lets the FPU round
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

float bfloat16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t floatToBfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void convertToFloat(const void* source, DType type, float* destination, size_t count) {
  switch (type) {
    case DType::F32: std::memcpy(destination, source, count * sizeof(float)); return;
    case DType::F64:
      for (size_t i = 0; i < count; ++i) destination[i] = static_cast<float>(static_cast<const double*>(source)[i]);
      return;
    case DType::F16:
      for (size_t i = 0; i < count; ++i) destination[i] = halfToFloat(static_cast<const uint16_t*>(source)[i]);
      return;
    case DType::BF16:
      for (size_t i = 0; i < count; ++i) destination[i] = bfloat16ToFloat(static_cast<const uint16_t*>(source)[i]);
      return;
    case DType::C128:
      for (size_t i = 0; i < count; ++i) destination[i] = static_cast<float>(static_cast<const std::complex<double>*>(source)[i].real());
      return;
    default: throw Error(code::kUnsupported, std::string("cannot convert ") + dtypeName(type) + " to float32");
  }
}

void convertFromFloat(const float* source, void* destination, DType type, size_t count) {
  switch (type) {
    case DType::F32: std::memcpy(destination, source, count * sizeof(float)); return;
    case DType::F64:
      for (size_t i = 0; i < count; ++i) static_cast<double*>(destination)[i] = source[i];
      return;
    case DType::F16:
      for (size_t i = 0; i < count; ++i) static_cast<uint16_t*>(destination)[i] = floatToHalf(source[i]);
      return;
    case DType::BF16:
      for (size_t i = 0; i < count; ++i) static_cast<uint16_t*>(destination)[i] = floatToBfloat16(source[i]);
      return;
    case DType::C128:
      for (size_t i = 0; i < count; ++i) static_cast<std::complex<double>*>(destination)[i] = source[i];
      return;
    default: throw Error(code::kUnsupported, std::string("cannot convert float32 to ") + dtypeName(type));
  }
}

}  // namespace rlhf
