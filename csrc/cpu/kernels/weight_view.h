#pragma once
#include "core/error.h"
#include "cpu/kernels/gemm.h"
#include "ops/linear.h"

// A weight as the right operand of a product.

namespace rlhf::RLHF_ISA {

/// Wᵀ [K, M] and W [M, K] where they lie.
inline MatrixView transposeOf(const void* weight, int64_t outputs, int64_t inputs, bool transposed, DType type = DType::F32) {
  return transposed ? MatrixView{weight, outputs, 1, type} : MatrixView{weight, 1, inputs, type};
}
inline MatrixView asItIs(const void* weight, int64_t outputs, int64_t inputs, bool transposed, DType type = DType::F32) {
  return transposed ? MatrixView{weight, 1, outputs, type} : MatrixView{weight, inputs, 1, type};
}

/// W [M, K] for dx = dy·W without its form for that: as it lies, or, where it is held for y = x·Wᵀ alone, out of that form.
inline MatrixView backwardOperand(const char* op, const LinearWeight& weight, int64_t outputs, int64_t inputs) {
  if (weight.data) return asItIs(weight.data, outputs, inputs, weight.transposed, weight.type);
  if (weight.compute != DType::F32)
    throw Error(code::kUnsupported, format("%s: the form of a weight for y = x·Wᵀ in %s serves no other product", op, dtypeName(weight.compute)));
  MatrixView panels{weight.packedForward, 1, kPanelCols};
  panels.panelStride = panelStrideOf(inputs, DType::F32);
  return panels;
}

}  // namespace rlhf::RLHF_ISA
