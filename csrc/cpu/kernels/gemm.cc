#include "cpu/kernels/gemm.h"

#include <algorithm>

#include "core/error.h"
#include "cpu/kernels/parallel.h"

namespace rlhf::RLHF_ISA {
namespace {

// Blocking: a block of B of at most kBlockDepth × kStripCols floats stays in the second-level cache while panels of A pass by.
constexpr int64_t kBlockDepth = 960;
constexpr int64_t kGroupRows = 1008;  // rows for which one packed block of B serves
constexpr int64_t kStripPanels = kStripCols / kPanelCols;

// A second thread costs a few microseconds to call, the time of about this many multiply-adds.
constexpr int64_t kSharedMultiplyAdds = 1 << 18;

// A thread's scratch memory holds a block of B and the unfinished strips of a group of rows.
constexpr int64_t kBlockFloats = kBlockDepth * kStripCols;
constexpr int64_t kPartialFloats = (kGroupRows + kPanelRows) * kStripCols;
static_assert((kBlockFloats + kPartialFloats) * sizeof(float) <= cpu::kScratchPerThread);

/// Splits [0, count) into `parts` nearly equal runs; run `index` is [begin(index), begin(index + 1)).
struct EvenSplit {
  int64_t count, parts;
  int64_t begin(int64_t index) const { return count * index / parts; }
};

/// The part of one term's k that falls into a block. Blocks cut the terms' k laid end to end, so that the second term, when it is
/// short, runs in the same call of the micro-kernel as the end of the first.
struct DepthRange {
  int64_t begin = 0, depth = 0;
};
DepthRange rangeOf(const Product& product, int term, int64_t blockBegin, int64_t blockEnd) {
  const int64_t termBegin = term == 0 ? 0 : product.terms[0].depth;
  const int64_t begin = std::max(blockBegin, termBegin) - termBegin;
  const int64_t end = std::min(blockEnd - termBegin, product.terms[term].depth);
  return {begin, std::max<int64_t>(0, end - begin)};
}

/// The product of a range of rows whose packed A fits the scratch memory.
class RowPass {
 public:
  RowPass(OpContext& context, const Product& product, Columns columns, StripConsumer consume, int64_t rowBegin, int64_t rows,
          SharedScratch scratch)
      : context_(context), product_(product), consume_(consume), rowBegin_(rowBegin), rows_(rows),
        panelRows_(panelRowsFor(rows)), rowPanels_{ceilDivide(rows, panelRows_), 1},
        colPanels_{ceilDivide(product.cols, kPanelCols), 1} {
    for (int t = 0; t < 2; ++t) {
      if (product.terms[t].depth == 0) continue;
      packedA_[t] = scratch.take(aPanelStride(panelRows_, product.terms[t].depth) * rowPanels_.count);
    }
    chooseSplits(columns);
  }

  void run() {
    const int64_t multiplyAdds = rows_ * product_.cols * (product_.terms[0].depth + product_.terms[1].depth);
    const bool share = multiplyAdds >= kSharedMultiplyAdds;
    packRows(share);
    const int64_t cuts = colCuts();
    forEachTask(context_, rowPanels_.parts * cuts, share, [&](int64_t task, int slot) {
      multiplyBlock(task % rowPanels_.parts, task / rowPanels_.parts, slot);
    });
  }

 private:
  bool packsB() const {
    return !product_.terms[0].packedB || (product_.terms[1].depth > 0 && !product_.terms[1].packedB);
  }
  int64_t colCuts() const { return fixedCuts_ ? ceilDivide(colPanels_.count, kStripPanels) : colPanels_.parts; }

  /// Tasks of equal size, at least two for every thread. Packing a block of B pays for itself over many rows only, so there
  /// the columns are split first; where B is packed already the rows are, which keeps strips wide.
  void chooseSplits(Columns columns) {
    const int64_t threads = cpu::pool(context_).size();
    const int64_t fewestRowParts = ceilDivide(rows_, kGroupRows);
    const int64_t fewestColParts = ceilDivide(colPanels_.count, kStripPanels);
    const int64_t wanted = threads == 1 ? 1 : 2 * threads;
    fixedCuts_ = columns == Columns::FixedCuts;
    const auto upTo = [](int64_t parts, int64_t limit) { return std::min(parts, limit); };
    if (fixedCuts_) {
      colPanels_.parts = fewestColParts;
      rowPanels_.parts = std::max(fewestRowParts, upTo(ceilDivide(wanted, fewestColParts), rowPanels_.count));
    } else if (packsB()) {
      const int64_t colRounds = ceilDivide(fewestColParts, wanted);
      colPanels_.parts = std::max(fewestColParts, upTo(wanted * colRounds, colPanels_.count));
      rowPanels_.parts = std::max(fewestRowParts, upTo(ceilDivide(wanted, colPanels_.parts), rowPanels_.count));
    } else {
      rowPanels_.parts = std::max(fewestRowParts, upTo(4 * wanted, ceilDivide(rowPanels_.count, 4)));
      colPanels_.parts = std::max(fewestColParts, upTo(ceilDivide(4 * wanted, rowPanels_.parts), colPanels_.count));
    }
  }

  void packRows(bool share) {
    constexpr int64_t kPanelsPerTask = 8;
    forEachTask(context_, ceilDivide(rowPanels_.count, kPanelsPerTask), share, [&](int64_t task, int) {
      const int64_t panel = task * kPanelsPerTask;
      const int64_t row = panel * panelRows_, rows = std::min(kPanelsPerTask * panelRows_, rows_ - row);
      for (int t = 0; t < 2; ++t) {
        const Term& term = product_.terms[t];
        if (term.depth == 0) continue;
        packA(term.a.from(rowBegin_ + row, 0), rows, term.depth, term.factor, panelRows_,
              packedA_[t] + panel * aPanelStride(panelRows_, term.depth));
      }
    });
  }

  /// One task: a group of row panels times a strip's width of column panels.
  void multiplyBlock(int64_t rowPart, int64_t colPart, int slot) {
    const int64_t firstRowPanel = rowPanels_.begin(rowPart), endRowPanel = rowPanels_.begin(rowPart + 1);
    const int64_t firstColPanel = fixedCuts_ ? colPart * kStripPanels : colPanels_.begin(colPart);
    const int64_t endColPanel =
        fixedCuts_ ? std::min(colPanels_.count, firstColPanel + kStripPanels) : colPanels_.begin(colPart + 1);
    const int64_t stride = (endColPanel - firstColPanel) * kPanelCols;
    float* const blockOfB = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    float* const partial = blockOfB + kBlockFloats;

    const int64_t depth = product_.terms[0].depth + product_.terms[1].depth;
    const EvenSplit blocks{depth, std::max<int64_t>(1, ceilDivide(depth, kBlockDepth))};
    for (int64_t block = 0; block < blocks.parts; ++block) {
      const bool first = block == 0, last = block == blocks.parts - 1;
      const DepthRange ranges[2] = {rangeOf(product_, 0, blocks.begin(block), blocks.begin(block + 1)),
                                    rangeOf(product_, 1, blocks.begin(block), blocks.begin(block + 1))};
      const BlockOfB b = prepareB(ranges, firstColPanel, endColPanel, blockOfB);
      for (int64_t rowPanel = firstRowPanel; rowPanel < endRowPanel; ++rowPanel) {
        // With all of k in one block, one strip that never leaves the first-level cache serves all rows.
        float* const values = first && last ? partial : partial + (rowPanel - firstRowPanel) * panelRows_ * stride;
        const int64_t col = firstColPanel * kPanelCols, cols = std::min(stride, product_.cols - col);
        multiplyStrip(ranges, b, rowPanel, cols, values, stride, !first);
        if (last)
          consume_({rowBegin_ + rowPanel * panelRows_, heightOf(rowPanel), col, cols, values, stride, slot});
      }
    }
  }

  int64_t heightOf(int64_t rowPanel) const { return std::min(panelRows_, rows_ - rowPanel * panelRows_); }

  /// Where the panels of B for a block lie: panel p of a term at data[term] + p · stride[term].
  struct BlockOfB {
    const float* data[2];
    int64_t stride[2];
  };

  BlockOfB prepareB(const DepthRange* ranges, int64_t firstColPanel, int64_t endColPanel, float* scratch) const {
    BlockOfB result{};
    const int64_t col = firstColPanel * kPanelCols, cols = std::min(endColPanel * kPanelCols, product_.cols) - col;
    for (int t = 0; t < 2; ++t) {
      const Term& term = product_.terms[t];
      if (ranges[t].depth == 0) continue;
      if (term.packedB) {
        result.data[t] = term.packedB + firstColPanel * term.packedBStride + ranges[t].begin * kPanelCols;
        result.stride[t] = term.packedBStride;
      } else {
        result.data[t] = scratch;
        result.stride[t] = ranges[t].depth * kPanelCols;
        packB(term.b.from(ranges[t].begin, col), ranges[t].depth, cols, scratch, result.stride[t]);
        scratch += result.stride[t] * (endColPanel - firstColPanel);
      }
    }
    return result;
  }

  void multiplyStrip(const DepthRange* ranges, const BlockOfB& b, int64_t rowPanel, int64_t cols, float* values,
                     int64_t stride, bool accumulate) const {
    const int height = static_cast<int>(heightOf(rowPanel));
    Segment segments[2];
    for (int t = 0; t < 2; ++t) {
      if (ranges[t].depth == 0) continue;
      const float* panel = packedA_[t] + rowPanel * aPanelStride(panelRows_, product_.terms[t].depth);
      segments[t] = {panel + ranges[t].begin * height, b.data[t], ranges[t].depth};
    }
    for (int64_t col = 0; col < cols; col += kPanelCols) {
      const int vectors = cols - col <= kWidth ? 1 : kPanelVectors;
      microKernel(height, vectors)(segments, 2, values + col, stride, accumulate);
      for (int t = 0; t < 2; ++t) segments[t].b += b.stride[t];
    }
  }

  OpContext& context_;
  const Product& product_;
  StripConsumer consume_;
  int64_t rowBegin_, rows_, panelRows_;
  EvenSplit rowPanels_, colPanels_;
  bool fixedCuts_ = false;
  float* packedA_[2] = {};
};

/// Rows whose packed A fits into `floats`, a whole number of panels unless that is all of them.
int64_t rowsThatFit(const Product& product, int64_t floats) {
  int64_t panel = 0;
  for (const Term& term : product.terms)
    if (term.depth > 0) panel += aPanelStride(kPanelRows, term.depth);
  return std::min(product.rows, std::max<int64_t>(1, floats / panel) * kPanelRows);
}

}  // namespace

SharedScratch::SharedScratch(OpContext& context) {
  const size_t threadBytes = static_cast<size_t>(cpu::pool(context).size()) * cpu::kScratchPerThread;
  if (context.scratchBytes < threadBytes)
    throw Error(code::kOutOfMemory, "the context's scratch memory is smaller than Ops::scratchBytes for any limits");
  next_ = reinterpret_cast<float*>(static_cast<char*>(context.scratch) + threadBytes);
  floatsLeft_ = static_cast<int64_t>((context.scratchBytes - threadBytes) / sizeof(float));
}

float* SharedScratch::take(int64_t floats) {
  floats = ceilDivide(floats, kWidth) * kWidth;
  if (floats > floatsLeft_)
    throw Error(code::kOutOfMemory,
                format("%lld bytes of scratch memory are left where %lld are needed: call Ops::scratchBytes with the largest "
                       "sizes in use",
                       static_cast<long long>(floatsLeft_) * 4, static_cast<long long>(floats) * 4));
  float* const taken = next_;
  next_ += floats;
  floatsLeft_ -= floats;
  return taken;
}

void gemm(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume, Columns columns) {
  const int64_t step = rowsThatFit(product, scratch.floatsLeft());
  for (int64_t row = 0; row < product.rows; row += step)
    RowPass(context, product, columns, consume, row, std::min(step, product.rows - row), scratch).run();
}

}  // namespace rlhf::RLHF_ISA
