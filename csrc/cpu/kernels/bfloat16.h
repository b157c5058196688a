#pragma once
#include "cpu/bfloat16_kernel.h"
#include "cpu/kernels/pack.h"

namespace rlhf::RLHF_ISA {

using cpu::kBfloat16StepElements;
using cpu::kBfloat16StepFloats;
using cpu::kBfloat16Tile;

/// Steps of 32 that `depth` values of k take.
constexpr int64_t bfloat16Steps(int64_t depth) { return (depth + kBfloat16Tile - 1) / kBfloat16Tile; }

/// Packs rows [0, rows) of A [rows, depth], which is float32, times `factor`, into panels `panelStride` floats apart.
void packBfloat16A(const MatrixView& a, int64_t rows, int64_t depth, float factor, float* packed, int64_t panelStride);

/// Packs B [depth, cols] into panels `panelStride` floats apart.
void packBfloat16B(const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride);

/// The kernel for this instruction set.
const cpu::Bfloat16Kernel& bfloat16Kernel();

}  // namespace rlhf::RLHF_ISA
