#pragma once
#include "cpu/bfloat16_kernel.h"
#include "cpu/kernels/pack.h"

namespace rlhf::RLHF_ISA {

using cpu::kBfloat16StepElements;
using cpu::kBfloat16StepFloats;
using cpu::kBfloat16Tile;

/// Steps of 32 that `depth` values of k take.
constexpr int64_t bfloat16Steps(int64_t depth) { return (depth + kBfloat16Tile - 1) / kBfloat16Tile; }

/// Whether products are computed in bfloat16: of numbers rounded to it, or split into two of it (BF16X3).
constexpr bool isBfloat16(DType compute) { return compute == DType::BF16 || compute == DType::BF16X3; }

/// Floats that a step of a packed panel takes.
constexpr int64_t bfloat16StepFloats(DType compute) {
  return (compute == DType::BF16X3 ? cpu::Bfloat16Parts<true>::kCount : 1) * cpu::kBfloat16StepFloats;
}

/// Packs rows [0, rows) of A [rows, depth], which is float32, times `factor`, for products in `compute`, into panels `panelStride` floats apart.
void packBfloat16A(DType compute, const MatrixView& a, int64_t rows, int64_t depth, float factor, float* packed, int64_t panelStride);

/// Packs B [depth, cols] into panels `panelStride` floats apart.
void packBfloat16B(DType compute, const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride);

// In float32 by three parts of each number: `packed` holds a step of the largest parts, one of the middle and one of the least.
inline constexpr int64_t kExactStepFloats = 3 * kBfloat16StepFloats;

/// packBfloat16A in three parts.
void packExactA(const MatrixView& a, int64_t rows, int64_t depth, float factor, float* packed, int64_t panelStride);

/// Where the processor has no instruction for bfloat16.
const cpu::Bfloat16Kernel& wideningKernel();

/// The kernel for this instruction set.
const cpu::Bfloat16Kernel& bfloat16Kernel();

}  // namespace rlhf::RLHF_ISA
