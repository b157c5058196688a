#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "cpu/kernels/micro_kernel.h"

namespace rlhf::RLHF_ISA {

/// A matrix in memory: element (row, col) lies at data[row · rowStride + col · colStride], and one of the strides is 1. B may be
/// kept in 16 bits; packing widens it. With a panelStride B lies as the panels of its transpose (below), so many elements apart: rows are
/// counted from the first panel's, in which the strides hold.
struct MatrixView {
  const void* data = nullptr;
  int64_t rowStride = 0, colStride = 1;
  DType type = DType::F32;
  int64_t panelStride = 0, panelRow = 0;

  MatrixView from(int64_t row, int64_t col) const {
    MatrixView moved = *this;
    const int64_t elements = (panelStride > 0 ? 0 : row * rowStride) + col * colStride;
    moved.data = static_cast<const char*>(data) + elements * static_cast<int64_t>(dtypeSize(type));
    if (panelStride > 0) moved.panelRow += row;
    return moved;
  }
};

// Packed operands are cut into panels, each laid out in the order in which a micro-kernel reads it: a panel of A holds
// [depth][panelRows], a panel of B holds [depth][kPanelCols] with zeros in the columns beyond the matrix.

/// Rows of A's panels for a product of `rows` rows: kPanelRows, or less where that divides few rows more evenly.
int64_t panelRowsFor(int64_t rows);

/// Floats between two panels of A, which leaves room behind each for whole-vector stores.
constexpr int64_t aPanelStride(int64_t panelRows, int64_t depth) {
  return (panelRows * depth + kWidth + kWidth - 1) / kWidth * kWidth;
}

/// Packs rows [0, rows) of A [rows, depth], which is float32, times `factor`, into panels of `panelRows` (the last one may have fewer).
void packA(const MatrixView& a, int64_t rows, int64_t depth, float factor, int64_t panelRows, float* packed);

/// Packs B [depth, cols] into panels `panelStride` floats apart.
void packB(const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride);

}  // namespace rlhf::RLHF_ISA
