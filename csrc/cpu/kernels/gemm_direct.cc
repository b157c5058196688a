#include <algorithm>

#include "cpu/kernels/direct_kernel.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"

namespace rlhf::RLHF_ISA {
namespace {

// Where few columns use A, or few rows B, packing takes as long as a good part of the product. Then A is read as it lies, by rows
// (activations) or by columns (the left side of a weight's gradient), and so is B where its rows are whole vectors.
constexpr int64_t kFewestRows = 128;     // of A by rows; with fewer B's packing would count
constexpr int64_t kMostCols = 512;       // with more A is worth packing
constexpr int64_t kMostDepth = 512;      // of A by rows: panels of B beyond this leave the second-level cache
constexpr int64_t kFewCols = kPanelCols; // one panel of B takes any depth
constexpr int64_t kBlockDepth = 128;     // of A by columns: a panel of A and one of B for which the first-level cache has room
constexpr int64_t kMostPartial = kMostCols * kMostCols;
static_assert((kBlockDepth * kPanelCols + kMostPartial + kPanelRows * (kMostCols + kPanelCols)) * sizeof(float) <= cpu::kScratchPerThread);

Contiguous kindOf(const MatrixView& a) { return a.colStride == 1 ? Contiguous::Depth : Contiguous::Rows; }

/// Rows a multiple of this far apart share sets of the first-level cache: a panel of the usual height would push out its own lines.
constexpr int64_t kSetsApart = 1024;
constexpr int64_t kRowsOfSharedSets = 8;
constexpr int64_t kSetsApartOfBlock = 256;

/// Whether B can be read where it lies: rows of whole vectors that cross no cache line.
bool liesInVectors(const MatrixView& b, int64_t cols) {
  return b.colStride == 1 && b.type == DType::F32 && b.rowStride % kWidth == 0 && cols % kWidth == 0 &&
         reinterpret_cast<uintptr_t>(b.data) % sizeof(Vec) == 0;
}

class DirectProduct {
 public:
  DirectProduct(OpContext& context, const Product& product, StripConsumer consume, SharedScratch scratch)
      : context_(context), product_(product), term_(product.terms[0]), consume_(consume), kind_(kindOf(term_.a)), rows_(product.rows),
        cols_(product.cols), panelRows_(panelRowsOf(term_.a, rows_)), rowPanels_(ceilDivide(rows_, panelRows_)),
        colPanels_(ceilDivide(cols_, kPanelCols)), readsB_(!term_.packedB && liesInVectors(term_.b, cols_)),
        packedB_(term_.packedB), packedBStride_(term_.packedBStride) {
    if (packedB_ || readsB_ || kind_ == Contiguous::Rows) return;
    packedBStride_ = term_.depth * kPanelCols;
    float* const packed = scratch.take(packedBStride_ * colPanels_);
    packColumns(context, term_.b, term_.depth, cols_, packed);
    packedB_ = packed;
  }

  void run() {
    const bool share = rows_ * cols_ * term_.depth >= kSharedWork;
    const int64_t threads = cpu::pool(context_).size(), tasks = threads == 1 || !share ? 1 : 4 * threads;
    if (kind_ == Contiguous::Depth) {
      const int64_t parts = std::min(rowPanels_, tasks);
      forEachTask(context_, parts, share, [&](int64_t part, int slot) {
        multiplyRows(rowPanels_ * part / parts, rowPanels_ * (part + 1) / parts, slot);
      });
      return;
    }
    const int64_t colParts = std::min(colPanels_, tasks), rowParts = std::min(rowPanels_, ceilDivide(tasks, colParts));
    forEachTask(context_, rowParts * colParts, share, [&](int64_t task, int slot) {
      const int64_t row = task / colParts, col = task % colParts;
      multiplyBlock(rowPanels_ * row / rowParts, rowPanels_ * (row + 1) / rowParts, colPanels_ * col / colParts,
                    colPanels_ * (col + 1) / colParts, slot);
    });
  }

 private:
  static int64_t panelRowsOf(const MatrixView& a, int64_t rows) {
    const bool shareSets = kindOf(a) == Contiguous::Depth && a.rowStride % kSetsApart == 0;
    return shareSets ? std::min<int64_t>(kRowsOfSharedSets, kPanelRows) : panelRowsFor(rows);
  }

  /// A by rows: each panel of A, which the first-level cache holds, meets all of B.
  void multiplyRows(int64_t beginRow, int64_t endRow, int slot) const {
    float* const strip = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    const int64_t stride = colPanels_ * kPanelCols;
    for (int64_t i = beginRow; i < endRow; ++i) {
      for (int64_t j = 0; j < colPanels_; ++j)
        multiplyTile(i, j, 0, term_.depth, columnPanel(j, 0), strip + j * kPanelCols, stride, fetchPart(i + 1, j));
      finish(i, 0, colPanels_, strip, stride, slot);
    }
  }

  /// A by columns: block after block of k, of which a panel of B stays in the first-level cache while A passes by.
  void multiplyBlock(int64_t beginRow, int64_t endRow, int64_t beginCol, int64_t endCol, int slot) const {
    float* const copy = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    float* const partial = copy + kBlockDepth * kPanelCols;
    const int64_t stride = (endCol - beginCol) * kPanelCols;
    const auto stripOf = [&](int64_t i) { return partial + (i - beginRow) * panelRows_ * stride; };
    for (int64_t k = 0; k < term_.depth; k += kBlockDepth) {
      const int64_t depth = std::min(kBlockDepth, term_.depth - k);
      for (int64_t j = beginCol; j < endCol; ++j) {
        const Panel b = packedB_ || readsB_ ? columnPanel(j, k) : copyOf(j, k, depth, copy);
        for (int64_t i = beginRow; i < endRow; ++i)
          multiplyTile(i, j, k, depth, b, stripOf(i) + (j - beginCol) * kPanelCols, stride, {});
      }
    }
    for (int64_t i = beginRow; i < endRow; ++i) finish(i, beginCol, endCol, stripOf(i), stride, slot);
  }

  /// A panel of B from some k on.
  struct Panel {
    const float* data;
    int64_t stride;
  };

  Panel columnPanel(int64_t panel, int64_t k) const {
    if (packedB_) return {packedB_ + panel * packedBStride_ + k * kPanelCols, kPanelCols};
    return {static_cast<const float*>(term_.b.from(k, panel * kPanelCols).data), term_.b.rowStride};
  }

  Panel copyOf(int64_t panel, int64_t k, int64_t depth, float* copy) const {
    const int64_t col = panel * kPanelCols, cols = std::min<int64_t>(kPanelCols, cols_ - col);
    const MatrixView b = term_.b.from(k, col);
    if (cols < kPanelCols || b.colStride != 1 || b.type != DType::F32) {
      packB(b, depth, cols, copy, depth * kPanelCols);
    } else {
      const auto* source = static_cast<const float*>(b.data);
      for (int64_t i = 0; i < depth; ++i)
        for (int v = 0; v < kPanelVectors; ++v)
          store(copy + i * kPanelCols + v * kWidth, load(source + i * b.rowStride + v * kWidth));
    }
    return {copy, kPanelCols};
  }

  /// Part `colPanel` of the rows of A in one panel, and of those of C that its results will go to.
  DirectPrefetch fetchPart(int64_t rowPanel, int64_t colPanel) const {
    const int64_t row = rowPanel * panelRows_;
    if (row >= rows_) return {};
    const auto part = [&](const float* rows, int64_t stride) -> Prefetch {
      const int64_t fetches = std::max<int64_t>(1, term_.depth / 2) * colPanels_;
      const int64_t bytes = panelRows_ * stride * static_cast<int64_t>(sizeof(float)) / fetches;
      return {reinterpret_cast<const char*>(rows + row * stride) + bytes * (fetches / colPanels_) * colPanel, bytes};
    };
    DirectPrefetch prefetch{.source = part(static_cast<const float*>(term_.a.data), term_.a.rowStride), .destination = {}};
    if (product_.destination) prefetch.destination = part(product_.destination, product_.destinationStride);
    return prefetch;
  }

  void multiplyTile(int64_t rowPanel, int64_t colPanel, int64_t k, int64_t depth, const Panel& b, float* values, int64_t stride,
                    const DirectPrefetch& prefetch) const {
    const int64_t row = rowPanel * panelRows_;
    const DirectSegment segment{.a = static_cast<const float*>(term_.a.from(row, k).data),
                                .aStride = kind_ == Contiguous::Depth ? term_.a.rowStride : term_.a.colStride,
                                .b = b.data,
                                .bStride = b.stride,
                                .depth = depth};
    const auto height = static_cast<int>(std::min(panelRows_, rows_ - row));
    const int vectors = cols_ - colPanel * kPanelCols <= kWidth ? 1 : kPanelVectors;
    directKernel(kind_, height, vectors)(segment, values, stride, k > 0, prefetch);
  }

  void finish(int64_t rowPanel, int64_t beginCol, int64_t endCol, float* strip, int64_t stride, int slot) const {
    const int64_t row = rowPanel * panelRows_, begin = beginCol * kPanelCols, end = std::min(endCol * kPanelCols, cols_);
    for (int64_t col = begin; col < end; col += kStripCols)
      consume_({row, std::min(panelRows_, rows_ - row), col, std::min(kStripCols, end - col), strip + (col - begin), stride, slot});
  }

  OpContext& context_;
  const Product& product_;
  const Term& term_;
  StripConsumer consume_;
  Contiguous kind_;
  int64_t rows_, cols_, panelRows_, rowPanels_, colPanels_;
  bool readsB_;
  const float* packedB_;
  int64_t packedBStride_;
};

}  // namespace

bool readsOperandsAsTheyLie(const Product& product, const SharedScratch& scratch, Columns columns) {
  const Term& term = product.terms[0];
  if (product.terms[1].depth > 0 || term.factor != 1) return false;
  if (kindOf(term.a) == Contiguous::Depth)
    return product.rows >= kFewestRows && product.cols <= kMostCols && (term.depth <= kMostDepth || product.cols <= kFewCols) &&
           term.depth * ceilDivide(product.cols, kPanelCols) * kPanelCols <= scratch.floatsLeft();
  return columns == Columns::Balanced && term.a.colStride % kSetsApartOfBlock != 0 &&
         product.rows * ceilDivide(product.cols, kPanelCols) * kPanelCols <= kMostPartial &&
         ((product.rows <= kMostCols && product.cols <= kMostCols) || product.rows <= kFewCols || product.cols <= kFewCols);
}

void gemmDirect(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume) {
  DirectProduct(context, product, consume, scratch).run();
}

}  // namespace rlhf::RLHF_ISA
