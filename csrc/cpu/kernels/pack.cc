#include "cpu/kernels/pack.h"

#include <algorithm>

#include "cpu/kernels/parallel.h"
#include "cpu/kernels/widen.h"

namespace rlhf::RLHF_ISA {
namespace {

static_assert(kPanelRows <= kWidth, "a panel of A is packed by one in-register transpose");

/// Where a matrix is read a part of a row after another, no prefetcher of the processor sees a pattern: the part so many rows ahead is asked for.
constexpr int64_t kRowsAhead = 8;

/// packed[k · packedStride + i] = factor · source[i · sourceStride + k] for i < rows ≤ kWidth. Each store writes a whole
/// vector: lanes beyond `rows` fall where the next k is written, or into the slack behind the panel.
template <class Reader>
void packTransposed(const typename Reader::Element* source, int64_t sourceStride, int rows, int64_t depth, float factor, float* packed,
                    int64_t packedStride) {
  for (int64_t k = 0; k < depth; k += kWidth) {
    const int count = static_cast<int>(std::min<int64_t>(kWidth, depth - k));
    Vec block[kWidth];
    if (count == kWidth) {
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) block[i] = i < rows ? Reader::load(source + i * sourceStride + k) * factor : Vec{};
    } else {
      for (int i = 0; i < kWidth; ++i)
        block[i] = i < rows ? Reader::loadPartial(source + i * sourceStride + k, count) * factor : Vec{};
    }
    transpose(block);
    for (int i = 0; i < count; ++i) store(packed + (k + i) * packedStride, block[i]);
  }
}

/// Panels of A whose rows are contiguous in memory (a transposed matrix). One k feeds all panels before the next k, since
/// going down a column once for every panel would touch a page for every number.
void packRowContiguous(const MatrixView& a, int64_t rows, int64_t depth, float factor, int64_t panelRows, float* packed) {
  const int64_t stride = aPanelStride(panelRows, depth);
  for (int64_t k = 0; k < depth; ++k) {
    const float* source = static_cast<const float*>(a.data) + k * a.colStride;
    for (int64_t row = 0, panel = 0; row < rows; row += panelRows, ++panel) {
      const int height = static_cast<int>(std::min(panelRows, rows - row));
      __builtin_prefetch(source + kRowsAhead * a.colStride + row, 0, 2);
      store(packed + panel * stride + k * height, loadPartial(source + row, height) * factor);
    }
  }
}

}  // namespace

int64_t panelRowsFor(int64_t rows) { return ceilDivide(rows, ceilDivide(rows, kPanelRows)); }

void packA(const MatrixView& a, int64_t rows, int64_t depth, float factor, int64_t panelRows, float* packed) {
  if (a.colStride != 1) return packRowContiguous(a, rows, depth, factor, panelRows, packed);
  const int64_t stride = aPanelStride(panelRows, depth);
  for (int64_t row = 0; row < rows; row += panelRows, packed += stride) {
    const int height = static_cast<int>(std::min(panelRows, rows - row));
    packTransposed<Float32>(static_cast<const float*>(a.data) + row * a.rowStride, a.rowStride, height, depth, factor, packed,
                            height);
  }
}

namespace {

template <class Reader>
void packColumnsOf(const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride) {
  const auto* data = static_cast<const typename Reader::Element*>(b.data);
  if (b.colStride != 1) {
    for (int64_t col = 0; col < ceilDivide(cols, kPanelCols) * kPanelCols; col += kWidth) {
      const int height = static_cast<int>(std::clamp<int64_t>(cols - col, 0, kWidth));
      float* const destination = packed + col / kPanelCols * panelStride + col % kPanelCols;
      packTransposed<Reader>(data + col * b.colStride, b.colStride, height, depth, 1.0f, destination, kPanelCols);
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    const auto* source = data + k * b.rowStride;
    for (int64_t col = 0; col < ceilDivide(cols, kPanelCols) * kPanelCols; col += kWidth) {
      const int width = static_cast<int>(std::clamp<int64_t>(cols - col, 0, kWidth));
      __builtin_prefetch(source + kRowsAhead * b.rowStride + col, 0, 2);
      store(packed + col / kPanelCols * panelStride + k * kPanelCols + col % kPanelCols,
            Reader::loadPartial(source + col, width));
    }
  }
}

/// From panels of the transpose, one after the other: each is a matrix of as many rows as it has columns of that.
void packFromPanels(const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride) {
  for (int64_t k = 0, count = 0; k < depth; k += count) {
    const int64_t panel = (b.panelRow + k) / kPanelCols, row = (b.panelRow + k) % kPanelCols;
    count = std::min(depth - k, kPanelCols - row);
    const auto* source = static_cast<const float*>(b.data) + panel * b.panelStride + row;
    packColumnsOf<Float32>({source, b.rowStride, b.colStride}, count, cols, packed + k * kPanelCols, panelStride);
  }
}

}  // namespace

void packB(const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride) {
  if (b.panelStride > 0) return packFromPanels(b, depth, cols, packed, panelStride);
  withReader(b.type, [&]<class Reader>(Reader) { packColumnsOf<Reader>(b, depth, cols, packed, panelStride); });
}

}  // namespace rlhf::RLHF_ISA
