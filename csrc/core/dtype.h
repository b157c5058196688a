#pragma once
#include <complex>
#include <cstddef>
#include <cstdint>

namespace rlhf {

/// Element types that arrays may have. `C128` exists for complex-step gradient checks on the oracle. `BF16X3` is no array's: matrix
/// products may be computed in it (ops/linear.h).
enum class DType : int32_t { F32 = 0, F64 = 1, F16 = 2, BF16 = 3, C128 = 4, I32 = 5, BF16X3 = 6 };

/// Bytes of one element.
constexpr size_t dtypeSize(DType type) {
  switch (type) {
    case DType::F16:
    case DType::BF16: return 2;
    case DType::F64: return 8;
    case DType::C128: return 16;
    default: return 4;
  }
}

/// The type in which sums, statistics, losses and gradients of parameters are kept for activations of `type`:
/// float32 for everything narrower, else the type itself.
constexpr DType accumulatorType(DType type) {
  return (type == DType::F16 || type == DType::BF16) ? DType::F32 : type;
}

const char* dtypeName(DType type);

/// IEEE half and bfloat16 to float32 and back (round to nearest even).
float halfToFloat(uint16_t half);
uint16_t floatToHalf(float value);
float bfloat16ToFloat(uint16_t bits);
uint16_t floatToBfloat16(float value);

/// Converts `count` elements of any floating-point `type` to float32 and back; of complex ones the real part.
void convertToFloat(const void* source, DType type, float* destination, size_t count);
void convertFromFloat(const float* source, void* destination, DType type, size_t count);

}  // namespace rlhf
