#include "cpu/kernels/gemm.h"

#include <algorithm>

#include "core/error.h"
#include "cpu/kernels/gemm_few_rows.h"
#include "cpu/kernels/parallel.h"
#include "cpu/prefetch.h"

namespace rlhf::RLHF_ISA {
namespace {

// Two ways to share a product out. Where B is packed, a task takes a group of rows: it packs its block of A, which stays in
// the second-level cache while the panels of B pass by; few rows, which every task would pack, are packed once before them all.
// Where B is not, and too few rows would use its packed form to make it first, all of A is packed; then a task takes a strip of
// columns: it packs its block of B, and the panels of A pass by.
constexpr int64_t kBlockDepth = 1024;
constexpr int64_t kRowsPerPackedB = 1008;  // rows for which one packed block of B serves
constexpr int64_t kRowsPerPackedA = 84;    // rows in a block of A: 1 to 3 % faster than 168 with AVX-512
constexpr int64_t kColsPerPackedA = 1024;  // columns for which one packed block of A serves; a multiple of kStripCols
constexpr int64_t kRowsPackedOnce = 48;    // up to so many, packing them in every task takes a twentieth of its time
constexpr int64_t kRowsWorthPackingB = 256;
constexpr int64_t kStripPanels = kStripCols / kPanelCols;

// Reading an element of B from memory takes as long as some multiply-adds, which is what counts where few rows use it.
constexpr int64_t kWorkPerElementOfB = 8;

// A thread's scratch memory holds the block that it packed, a low-rank term's share of B, and unfinished strips.
constexpr int64_t kBlockFloats = kBlockDepth * kStripCols;
constexpr int64_t kPartialFloats = (kRowsPerPackedB + kPanelRows) * kStripCols;
static_assert((2 * kBlockFloats + kPartialFloats) * sizeof(float) <= cpu::kScratchPerThread);
static_assert((kRowsPerPackedA + kPanelRows) * (kBlockDepth + 3 * kWidth) <= kBlockFloats);
static_assert((kRowsPerPackedA + kPanelRows) * kColsPerPackedA <= kPartialFloats);

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

/// A panel of packed rows of A, all terms' k.
int64_t floatsPerRowPanel(const Product& product, int64_t panelRows) {
  int64_t floats = 0;
  for (const Term& term : product.terms)
    if (term.depth > 0) floats += aPanelStride(panelRows, term.depth);
  return floats;
}

/// The product of a range of rows whose packed A fits the scratch memory.
class RowPass {
 public:
  RowPass(OpContext& context, const Product& product, Columns columns, StripConsumer consume, int64_t rowBegin, int64_t rows,
          SharedScratch scratch)
      : context_(context), product_(product), consume_(consume), rowBegin_(rowBegin), rows_(rows),
        panelRows_(panelRowsFor(rows)), rowPanels_(ceilDivide(rows, panelRows_)),
        colPanels_(ceilDivide(product.cols, kPanelCols)), packsB_(!product.terms[0].packedB),
        packsRowsBefore_(packsB_ || (rows <= kRowsPackedOnce && floatsPerRowPanel(product, panelRows_) * rowPanels_ <= scratch.floatsLeft())),
        finishTiles_(columns == Columns::Balanced) {
    if (packsRowsBefore_)
      for (int t = 0; t < 2; ++t)
        if (product.terms[t].depth > 0)
          packedA_[t] = scratch.take(aPanelStride(panelRows_, product.terms[t].depth) * rowPanels_);
    chooseSplits(columns);
  }

  void run() {
    const int64_t depth = product_.terms[0].depth + product_.terms[1].depth;
    const bool share = (rows_ + kWorkPerElementOfB) * product_.cols * depth >= kSharedWork;
    if (packsRowsBefore_) packAllRows(share && rows_ * depth >= 2 * kElementsPerTask);
    forEachTask(context_, rowParts_ * colParts_, share, [&](int64_t task, int slot) {
      multiplyPart(task % rowParts_, task / rowParts_, slot);
    });
  }

 private:
  /// Tasks of about equal size, some for every thread. The operand that a task packs must serve many rows or columns, so the other
  /// side is split first. Fixed cuts make the parts of the columns whole strips.
  void chooseSplits(Columns columns) {
    const int64_t threads = cpu::pool(context_).size();
    const int64_t tasks = threads == 1 ? 1 : (packsB_ ? 2 : 6) * threads;
    colUnit_ = columns == Columns::FixedCuts ? kStripPanels : 1;
    const int64_t colUnits = ceilDivide(colPanels_, colUnit_);
    const int64_t fewestRows = ceilDivide(rowPanels_, (packsB_ ? kRowsPerPackedB : kRowsPerPackedA) / kPanelRows);
    const int64_t fewestCols = ceilDivide(colPanels_, (packsB_ ? kStripCols : kColsPerPackedA) / kPanelCols);
    if (packsB_) {
      colParts_ = std::max(fewestCols, std::min(colUnits, tasks * ceilDivide(fewestCols, tasks)));
      rowParts_ = std::max(fewestRows, std::min(rowPanels_, ceilDivide(tasks, colParts_)));
    } else {
      rowParts_ = packsRowsBefore_ ? 1 : std::max(fewestRows, std::min(ceilDivide(rowPanels_, 4), tasks));
      colParts_ = std::max(fewestCols, std::min(colUnits, ceilDivide(tasks, rowParts_)));
    }
  }

  int64_t firstRowPanel(int64_t part) const { return rowPanels_ * part / rowParts_; }
  int64_t firstColPanel(int64_t part) const {
    return std::min(colPanels_, ceilDivide(colPanels_, colUnit_) * part / colParts_ * colUnit_);
  }

  void packAllRows(bool share) {
    constexpr int64_t kMostPanelsPerTask = 8;
    const int64_t panelsPerTask = std::min(kMostPanelsPerTask, ceilDivide(rowPanels_, cpu::pool(context_).size()));
    forEachTask(context_, ceilDivide(rowPanels_, panelsPerTask), share, [&](int64_t task, int) {
      const int64_t panel = task * panelsPerTask;
      const int64_t row = panel * panelRows_, rows = std::min(panelsPerTask * panelRows_, rows_ - row);
      for (int t = 0; t < 2; ++t) {
        const Term& term = product_.terms[t];
        if (term.depth == 0) continue;
        packA(term.a.from(rowBegin_ + row, 0), rows, term.depth, term.factor, panelRows_,
              packedA_[t] + panel * aPanelStride(panelRows_, term.depth));
      }
    });
  }

  /// Where the panels of an operand lie for a block of k: panel p of a term at data[term] + p · stride[term].
  struct Panels {
    const float* data[2] = {};
    int64_t stride[2] = {};
  };

  /// One task: all of k for a group of row panels and a range of column panels.
  void multiplyPart(int64_t rowPart, int64_t colPart, int slot) {
    const int64_t beginRow = firstRowPanel(rowPart), endRow = firstRowPanel(rowPart + 1);
    const int64_t beginCol = firstColPanel(colPart), endCol = firstColPanel(colPart + 1);
    float* const packed = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    float* const partial = packed + 2 * kBlockFloats;

    const int64_t depth = product_.terms[0].depth + product_.terms[1].depth;
    const EvenSplit blocks{depth, ceilDivide(depth, kBlockDepth)};
    for (int64_t block = 0; block < blocks.parts; ++block) {
      const DepthRange ranges[2] = {rangeOf(product_, 0, blocks.begin(block), blocks.begin(block + 1)),
                                    rangeOf(product_, 1, blocks.begin(block), blocks.begin(block + 1))};
      const Panels a = packsRowsBefore_ ? rowsPackedBefore(beginRow) : packRows(ranges, beginRow, endRow, packed);
      for (int64_t col = beginCol; col < endCol; col += kStripPanels) {
        const int64_t end = std::min(endCol, col + kStripPanels);
        const Panels b = columnPanels(ranges, col, end, packed + kBlockFloats);
        float* const strips = partial + (col - beginCol) * kPanelCols * (endRow - beginRow) * panelRows_;
        multiplyStrips({ranges, a, b, beginRow, endRow, col, end, strips, block == 0, block == blocks.parts - 1, slot});
      }
    }
  }

  Panels rowsPackedBefore(int64_t beginRow) const {
    Panels a;
    for (int t = 0; t < 2; ++t) {
      if (product_.terms[t].depth == 0) continue;
      a.stride[t] = aPanelStride(panelRows_, product_.terms[t].depth);
      a.data[t] = packedA_[t] + beginRow * a.stride[t];
    }
    return a;
  }

  Panels packRows(const DepthRange* ranges, int64_t beginRow, int64_t endRow, float* packed) const {
    Panels a;
    const int64_t row = beginRow * panelRows_, rows = std::min(rows_, endRow * panelRows_) - row;
    for (int t = 0; t < 2; ++t) {
      if (ranges[t].depth == 0) continue;
      const Term& term = product_.terms[t];
      a.data[t] = packed;
      a.stride[t] = aPanelStride(panelRows_, ranges[t].depth);
      packA(term.a.from(rowBegin_ + row, ranges[t].begin), rows, ranges[t].depth, term.factor, panelRows_, packed);
      packed += a.stride[t] * (endRow - beginRow);
    }
    return a;
  }

  Panels columnPanels(const DepthRange* ranges, int64_t beginCol, int64_t endCol, float* scratch) const {
    Panels b;
    const int64_t col = beginCol * kPanelCols, cols = std::min(endCol * kPanelCols, product_.cols) - col;
    for (int t = 0; t < 2; ++t) {
      const Term& term = product_.terms[t];
      if (ranges[t].depth == 0) continue;
      if (term.packedB) {
        b.data[t] = term.packedB + beginCol * term.packedBStride + ranges[t].begin * kPanelCols;
        b.stride[t] = term.packedBStride;
      } else {
        b.data[t] = scratch;
        b.stride[t] = ranges[t].depth * kPanelCols;
        packB(term.b.from(ranges[t].begin, col), ranges[t].depth, cols, scratch, b.stride[t]);
        scratch += b.stride[t] * (endCol - beginCol);
      }
    }
    return b;
  }

  /// A group of row panels times at most a strip's width of column panels, over one block of k.
  struct StripGroup {
    const DepthRange* ranges;
    const Panels &a, &b;
    int64_t beginRow, endRow, beginCol, endCol;
    float* strips;
    bool first, last;
    int slot;
  };

  void multiplyStrips(const StripGroup& g) const {
    const int64_t stride = (g.endCol - g.beginCol) * kPanelCols;
    const int64_t rowPanels = g.endRow - g.beginRow, colPanels = g.endCol - g.beginCol;
    const auto stripOf = [&](int64_t rowPanel) { return g.strips + rowPanel * panelRows_ * stride; };
    if (packsB_) {
      // B's block is near and A is far: each panel of A serves the whole strip, and the next one is fetched meanwhile.
      for (int64_t i = 0; i < rowPanels; ++i) {
        for (int64_t j = 0; j < colPanels; ++j)
          multiplyTile(g, i, j, stripOf(i), stride, fetchPart(g, g.a, panelRows_, i + 1, j, colPanels));
        if (g.last && !finishTiles_) finish(g, i, 0, stride, stripOf(i), stride);
      }
    } else {
      // A's block is near and B is far.
      for (int64_t j = 0; j < colPanels; ++j)
        for (int64_t i = 0; i < rowPanels; ++i)
          multiplyTile(g, i, j, stripOf(i), stride,
                       rowPanels == 1 ? fetchAhead(g, g.b, j) : fetchPart(g, g.b, kPanelCols, j + 1, i, rowPanels));
      if (g.last && !finishTiles_)
        for (int64_t i = 0; i < rowPanels; ++i) finish(g, i, 0, stride, stripOf(i), stride);
    }
  }

  /// Part `part` of `parts` of the first term's panel `panel`, which has `width` floats for each k.
  static Prefetch fetchPart(const StripGroup& g, const Panels& panels, int64_t width, int64_t panel, int64_t part,
                            int64_t parts) {
    if (g.ranges[0].depth == 0) return {};
    const int64_t bytesPerStep = static_cast<int64_t>(sizeof(float)) * width / parts;
    const auto* begin = reinterpret_cast<const char*>(panels.data[0] + panel * panels.stride[0]);
    return {begin + part * bytesPerStep * g.ranges[0].depth, bytesPerStep};
  }

  /// Where few rows use B, as in decoding, memory sets the pace: a panel of B is fetched while it is used, a page ahead.
  static Prefetch fetchAhead(const StripGroup& g, const Panels& b, int64_t panel) {
    constexpr int64_t kFloatsAhead = 1024;
    if (g.ranges[0].depth == 0) return {};
    return {reinterpret_cast<const char*>(b.data[0] + panel * b.stride[0] + kFloatsAhead), sizeof(float) * kPanelCols};
  }

  /// With all of k in one block a tile goes from the registers through a buffer in the first-level cache to its consumer.
  void multiplyTile(const StripGroup& g, int64_t rowPanel, int64_t colPanel, float* strip, int64_t stride,
                    Prefetch prefetch) const {
    const auto height = static_cast<int>(heightOf(g.beginRow + rowPanel));
    Segment segments[2];
    for (int t = 0; t < 2; ++t) {
      if (g.ranges[t].depth == 0) continue;
      const int64_t skipped = packsRowsBefore_ ? g.ranges[t].begin * height : 0;  // A packed before holds all of k
      segments[t] = {g.a.data[t] + rowPanel * g.a.stride[t] + skipped, g.b.data[t] + colPanel * g.b.stride[t],
                     g.ranges[t].depth};
    }
    const int64_t cols = product_.cols - (g.beginCol + colPanel) * kPanelCols;
    alignas(64) float tile[kPanelRows * kPanelCols];
    const bool whole = g.first && g.last && finishTiles_;
    if (g.last && product_.destination) fetchDestination(g.beginRow + rowPanel, g.beginCol + colPanel);
    float* const values = whole ? tile : strip + colPanel * kPanelCols;
    const int64_t valueStride = whole ? kPanelCols : stride;
    microKernel(height, cols <= kWidth ? 1 : kPanelVectors)(segments, 2, values, valueStride, !g.first, prefetch);
    if (g.last && finishTiles_) finish(g, rowPanel, colPanel * kPanelCols, kPanelCols, values, valueStride);
  }

  /// Where a tile's results go is on its way while the tile is multiplied.
  RLHF_PREFETCH void fetchDestination(int64_t rowPanel, int64_t colPanel) const {
    const float* row = product_.destination + (rowBegin_ + rowPanel * panelRows_) * product_.destinationStride + colPanel * kPanelCols;
    for (int64_t i = 0; i < heightOf(rowPanel); ++i, row += product_.destinationStride)
      for (int64_t col = 0; col < kPanelCols; col += 16) __builtin_prefetch(row + col, 1);
  }

  /// Hands over the columns [col, col + cols) of the group's strip, in the rows of one panel.
  void finish(const StripGroup& g, int64_t rowPanel, int64_t col, int64_t cols, float* values, int64_t stride) const {
    const int64_t panel = g.beginRow + rowPanel, begin = g.beginCol * kPanelCols + col;
    consume_({rowBegin_ + panel * panelRows_, heightOf(panel), begin, std::min(cols, product_.cols - begin), values, stride,
              g.slot});
  }

  int64_t heightOf(int64_t rowPanel) const { return std::min(panelRows_, rows_ - rowPanel * panelRows_); }

  OpContext& context_;
  const Product& product_;
  StripConsumer consume_;
  int64_t rowBegin_, rows_, panelRows_;
  int64_t rowPanels_, colPanels_;
  bool packsB_, packsRowsBefore_, finishTiles_;
  int64_t rowParts_ = 1, colParts_ = 1, colUnit_ = 1;
  float* packedA_[2] = {};
};

/// Rows whose packed A fits into `floats`, a whole number of panels unless that is all of them.
int64_t rowsThatFit(const Product& product, int64_t floats) {
  return std::min(product.rows, std::max<int64_t>(1, floats / floatsPerRowPanel(product, kPanelRows)) * kPanelRows);
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

void packColumns(OpContext& context, const MatrixView& b, int64_t depth, int64_t cols, float* packed, DType compute) {
  const int64_t colsPerTask = kPanelsPerPackingTask * panelColsOf(compute), panelStride = panelStrideOf(depth, compute);
  forEachTask(context, ceilDivide(cols, colsPerTask), depth * cols >= kElementsPerTask, [&](int64_t task, int) {
    const int64_t col = task * colsPerTask;
    const int64_t count = std::min(colsPerTask, cols - col);
    float* const panels = packed + task * kPanelsPerPackingTask * panelStride;
    if (isBfloat16(compute))
      packBfloat16B(compute, b.from(0, col), depth, count, panels, panelStride);
    else
      packB(b.from(0, col), depth, count, panels, panelStride);
  });
}

void gemm(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume, Columns columns) {
  if (isBfloat16(product.compute)) return gemmBfloat16(context, scratch, product, consume, columns);
  const bool exact = isExactProduct(product);
  if (!exact && readsOperandsAsTheyLie(product, scratch, columns)) return gemmDirect(context, scratch, product, consume);
  const Term& main = product.terms[0];
  if (!exact && main.packedB && product.rows <= kMostFewRows && columns == Columns::Balanced)
    return gemmFewRows(context, scratch, product, consume);
  const int64_t stripsThatFit = scratch.floatsLeft() / (main.depth * kStripCols);
  if (main.packedB || product.rows < kRowsWorthPackingB || stripsThatFit == 0) {
    if (exact) return gemmExact(context, scratch, product, consume, columns);
    const int64_t step = main.packedB ? product.rows : rowsThatFit(product, scratch.floatsLeft());
    for (int64_t row = 0; row < product.rows; row += step)
      RowPass(context, product, columns, consume, row, std::min(step, product.rows - row), scratch).run();
    return;
  }
  const int64_t strips = ceilDivide(product.cols, kStripCols);
  const int64_t step = ceilDivide(strips, ceilDivide(strips, stripsThatFit)) * kStripCols;
  float* const packed = scratch.take(main.depth * std::min(step, strips * kStripCols));
  for (int64_t col = 0; col < product.cols; col += step) {
    Product part = product;
    part.cols = std::min(step, product.cols - col);
    if (part.destination) part.destination += col;
    part.terms[0].packedB = packed;
    part.terms[0].packedBStride = main.depth * kPanelCols;
    if (part.terms[1].depth > 0) part.terms[1].b = product.terms[1].b.from(0, col);
    packColumns(context, main.b.from(0, col), main.depth, part.cols, packed);
    auto shifted = [&](const Strip& strip) {
      Strip moved = strip;
      moved.col += col;
      consume(moved);
    };
    if (exact)
      gemmExact(context, scratch, part, shifted, columns);
    else
      RowPass(context, part, columns, shifted, 0, product.rows, scratch).run();
  }
}

}  // namespace rlhf::RLHF_ISA
