#pragma once
#include "core/error.h"
#include "ops/linear.h"

// What the CPU's kernels ask of their arguments beyond what ops/validate.cc checks.

namespace rlhf::RLHF_ISA {

inline void requireFloat32(DType type, const char* op) {
  if (type != DType::F32)
    throw Error(code::kUnsupported,
                format("%s: type %s is not supported on the CPU, use float32", op, dtypeName(type)));
}

/// A weight matrix may be kept in 16 bits; its packed forms are of float32, or of the bfloat16 that products are computed in.
inline void requireWeight(const char* op, const LinearWeight& weight, const void* packed) {
  const DType type = weight.type;
  const bool narrow = type == DType::F16 || type == DType::BF16;
  if (type != DType::F32 && !narrow)
    throw Error(code::kUnsupported, format("%s: weights of %s are not supported on the CPU, use float32, float16 or bfloat16",
                                           op, dtypeName(type)));
  if (narrow && packed && weight.compute == DType::F32)
    throw Error(code::kUnsupported, format("%s: weights of %s have no packed form for products in float32 on the CPU", op, dtypeName(type)));
}

/// `value`, element `position` of the array `field`, must lie in [0, limit).
inline void requireIndex(const char* op, const char* field, int64_t position, int64_t value, int64_t limit,
                         const char* errorCode = code::kArgument) {
  if (value < 0 || value >= limit)
    throw Error(errorCode, format("%s: %s[%lld] is %lld, expected 0 to %lld", op, field,
                                  static_cast<long long>(position), static_cast<long long>(value),
                                  static_cast<long long>(limit - 1)));
}

}  // namespace rlhf::RLHF_ISA
