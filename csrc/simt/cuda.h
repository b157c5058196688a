#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "simt/execution.h"

// The CUDA language as far as csrc/cuda uses it, for the host compiler. Included by csrc/cuda/prim/platform.cuh alone.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

using dim3 = rlhf::simt::Dim3;

namespace rlhf::cuda {

/// bfloat16 storage: the upper half of a float32.
struct bf16 {
  uint16_t bits;
};

inline float bf16ToFloat(bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

/// Rounds to nearest even; NaN stays NaN.
inline bf16 floatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

/// IEEE half storage.

struct f16 {
  uint16_t bits;
};

inline float f16ToFloat(f16 value) { return halfToFloat(value.bits); }
inline f16 floatToF16(float value) { return {floatToHalf(value)}; }

}  // namespace rlhf::cuda
