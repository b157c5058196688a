#include <algorithm>

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"

namespace rlhf::RLHF_ISA {
namespace {

using cpu::Bfloat16Kernel;
using cpu::Bfloat16Prefetch;
using cpu::Bfloat16Products;
using cpu::Bfloat16Segment;

constexpr int64_t kStripPanels = kStripCols / kBfloat16Tile;
constexpr int64_t kStripRowPanels = 8;  // whose tiles lie in the second-level cache while a strip is multiplied
constexpr int64_t kTileFloats = kBfloat16Tile * kBfloat16Tile;
static_assert((kBfloat16Tile * kStripCols + kStripRowPanels * kStripPanels * kTileFloats) * sizeof(float) <= cpu::kScratchPerThread);
// A group of rows' packed A stays in the second-level cache while the panels of B pass by, in blocks that take half of the first-level cache:
// 12 steps, of split operands 6. The longer a block, the less often tiles of C are taken up and put down again.
constexpr int64_t kGroupFloats = 160 << 10;
constexpr int64_t kMostGroupPanels = 16;
constexpr int64_t kBlockFloats = 6 << 10;

// Where a few panels of A are more than the second-level cache holds, a group goes through chunks of k, and tiles of C wait for the next one in
// the thread's scratch memory.
constexpr int64_t kDeepFloats = 64 << 10;
constexpr int64_t kChunkFloats = 24 << 10;
static_assert(kChunkFloats % kBlockFloats == 0 && kBlockFloats % bfloat16StepFloats(DType::BF16X3) == 0);
constexpr int64_t kScratchTiles = cpu::kScratchPerThread / sizeof(float) / kTileFloats;

// Multiply-adds that take about as long as calling the other threads, and as reading an element of B from memory, which is what counts
// where few rows use it.
constexpr int64_t kSharedWork = 1 << 22;
constexpr int64_t kWorkPerElementOfB = 32;

/// Packs rows [0, rows) of A, times `factor`, on all threads.
void packRows(OpContext& context, DType compute, const MatrixView& a, int64_t rows, int64_t depth, float factor, float* packed) {
  const int64_t stride = panelStrideOf(depth, compute);
  const int64_t panelsPerTask = a.colStride == 1 ? 1 : kPanelsPerPackingTask, rowsPerTask = panelsPerTask * kBfloat16Tile;
  forEachTask(context, ceilDivide(rows, rowsPerTask), rows * stride >= kElementsPerTask, [&](int64_t task, int) {
    const int64_t row = task * rowsPerTask;
    packBfloat16A(compute, a.from(row, 0), std::min(rowsPerTask, rows - row), depth, factor, packed + task * panelsPerTask * stride, stride);
  });
}

/// A part of the product whose packed operands fit the scratch memory: both are packed on all threads, then multiplied.
class Part {
 public:
  Part(OpContext& context, const Product& product, Columns columns, StripConsumer consume)
      : context_(context), product_(product), consume_(consume), wholeStrips_(columns == Columns::FixedCuts),
        stepFloats_(bfloat16StepFloats(product.compute)), linesOfStep_(stepFloats_ / 16), blockSteps_(kBlockFloats / stepFloats_) {
    for (int t = 0; t < 2; ++t) {
      steps_[t] = bfloat16Steps(product.terms[t].depth);
      packsB_[t] = steps_[t] > 0 && !product.terms[t].packedB;
      packsA_[t] = steps_[t] > 0 && !product.terms[t].packedA;
      strideA_[t] = steps_[t] * stepFloats_;
    }
  }

  int64_t aPanelFloats() const { return packsA_[0] * strideA_[0] + packsA_[1] * strideA_[1]; }
  int64_t bPanelFloats() const { return (packsB_[0] * steps_[0] + packsB_[1] * steps_[1]) * stepFloats_; }

  void setRows(int64_t begin, int64_t rows, float* packed) {
    rowBegin_ = begin, rows_ = rows;
    for (int t = 0; t < 2; ++t) {
      const Term& term = product_.terms[t];
      panelsA_[t] = packsA_[t] ? packed : term.packedA ? term.packedA + begin / kBfloat16Tile * strideA_[t] : nullptr;
      if (!packsA_[t]) continue;
      packRows(context_, product_.compute, term.a.from(begin, 0), rows, term.depth, term.factor, packed);
      packed += strideA_[t] * ceilDivide(rows, kBfloat16Tile);
    }
  }

  void setColumns(int64_t begin, int64_t cols, float* packed) {
    colBegin_ = begin, cols_ = cols;
    for (int t = 0; t < 2; ++t) {
      const Term& term = product_.terms[t];
      if (!packsB_[t]) {
        panelsB_[t] = steps_[t] > 0 ? term.packedB + panelOffset(0, begin, term.packedBStride, product_.compute) : nullptr;
        strideB_[t] = term.packedBStride;
        continue;
      }
      strideB_[t] = steps_[t] * stepFloats_;
      panelsB_[t] = packed;
      packColumns(context_, term.b.from(0, begin), term.depth, cols, packed, product_.compute);
      packed += strideB_[t] * ceilDivide(cols, kBfloat16Tile);
    }
  }

  void multiply() {
    const Bfloat16Kernel& kernel = bfloat16Kernel();
    const Bfloat16Products& products = product_.compute == DType::BF16X3 ? kernel.split : kernel.rounded;
    const int64_t rowPanels = ceilDivide(rows_, kBfloat16Tile), colPanels = ceilDivide(cols_, kBfloat16Tile);
    const int64_t threads = cpu::pool(context_).size(), tasks = threads == 1 ? 1 : 6 * threads;
    const int64_t most = isCut() ? kMostGroupPanels : rowPanels;
    const int64_t group = std::min(most, std::max<int64_t>(4, kGroupFloats / (chunkSteps() * stepFloats_ + strideA_[1])));
    const int64_t rowParts = ceilDivide(rowPanels, group);
    const int64_t unit = wholeStrips_ ? kStripPanels : 1, units = ceilDivide(colPanels, unit);
    const int64_t colParts = std::min(units, ceilDivide(tasks, rowParts));
    const bool share = (rows_ + kWorkPerElementOfB) * cols_ * (steps_[0] + steps_[1]) * kBfloat16Tile >= kSharedWork;
    forEachTask(context_, rowParts * colParts, share, [&](int64_t task, int slot) {
      const int64_t rowPart = task % rowParts, colPart = task / rowParts;
      const Range rows{rowPanels * rowPart / rowParts, rowPanels * (rowPart + 1) / rowParts};
      const Range cols{units * colPart / colParts * unit, std::min(colPanels, units * (colPart + 1) / colParts * unit)};
      if (kernel.begin) kernel.begin();
      if (wholeStrips_)
        multiplyStrips(products, rows, cols, slot);
      else if (products.stream && rowPanels == 1)
        multiplyFewRows(products, cols, slot);
      else
        multiplyTiles(products, rows, cols, slot);
      if (kernel.end) kernel.end();
    });
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  /// A group's rows by a range of columns, a chunk of k after another.
  void multiplyTiles(const Bfloat16Products& products, Range rows, Range cols, int slot) const {
    const int64_t height = rows.end - rows.begin;
    const int64_t chunk = height == 1 ? std::max<int64_t>(1, steps_[0]) : chunkSteps();
    const int64_t width = chunk < steps_[0] ? kScratchTiles / height : 1;  // panels of columns that wait for the next chunk
    for (int64_t begin = cols.begin; begin < cols.end; begin += width)
      for (int64_t step = 0; step == 0 || step < steps_[0]; step += chunk)
        multiplyChunk(products, rows, {begin, std::min(begin + width, cols.end)}, {step, std::min(step + chunk, steps_[0])}, slot);
  }

  /// A block of B stays in the first-level cache while all rows of the group pass by, and the next one is fetched meanwhile.
  void multiplyChunk(const Bfloat16Products& products, Range rows, Range cols, Range chunk, int slot) const {
    float* const tiles = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    const int64_t height = rows.end - rows.begin;
    const bool whole = height == 1 || !isCut();
    const int64_t blockSteps = whole ? std::max<int64_t>(1, steps_[0]) : blockSteps_;
    for (int64_t j = cols.begin; j < cols.end; ++j)
      for (int64_t step = chunk.begin; step == chunk.begin || step < chunk.end; step += blockSteps) {
        const Range steps{step, std::min(step + blockSteps, chunk.end)};
        const bool nextPanel = steps.end == chunk.end && j + 1 < cols.end;
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          float* const tile = tiles + (whole ? 0 : (j - cols.begin) * height + i - rows.begin) * kTileFloats;
          multiplyTile(products, i, j, steps, tile,
                       height == 1 ? fetchAhead(j)
                                   : fetchBlock(nextPanel ? j + 1 : j, nextPanel ? chunk.begin : steps.end, blockSteps, i - rows.begin, height));
          if (isLast(steps)) finish(i, j, 1, tile, kBfloat16Tile, slot);
        }
      }
  }

  /// Few rows, for which B comes from memory once: where tiles suffice two panels at a time, and results a strip at a time, as gemm_few_rows.cc says.
  void multiplyFewRows(const Bfloat16Products& products, Range cols, int slot) const {
    float* const strip = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    float* const tiles = strip + kBfloat16Tile * kStripCols;
    const int64_t most = rows_ <= kBfloat16Tile / 2 ? 2 : 1;
    for (int64_t begin = cols.begin; begin < cols.end; begin += kStripPanels) {
      const int64_t end = std::min(begin + kStripPanels, cols.end);
      for (int64_t j = begin; j < end; j += most) {
        Bfloat16Segment segments[2];
        const int count = segmentsOf(0, j, {0, steps_[0]}, segments);
        products.stream(segments, count, static_cast<int>(rows_), static_cast<int>(std::min(most, end - j)), tiles + (j - begin) * kTileFloats);
      }
      joinTiles(tiles, rows_, end - begin, strip);
      finish(0, begin, end - begin, strip, (end - begin) * kBfloat16Tile, slot);
    }
  }

  /// Tiles of some row panels by a strip's column panels, in the same blocks, and then the strips.
  void multiplyStrips(const Bfloat16Products& products, Range rows, Range cols, int slot) const {
    float* const strip = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    float* const tiles = strip + kBfloat16Tile * kStripCols;
    for (int64_t begin = cols.begin; begin < cols.end; begin += kStripPanels)
      for (int64_t top = rows.begin; top < rows.end; top += kStripRowPanels) {
        const Range some{top, std::min(top + kStripRowPanels, rows.end)};
        const int64_t panels = std::min(kStripPanels, cols.end - begin);
        multiplyStripTiles(products, some, {begin, begin + panels}, tiles);
        for (int64_t i = some.begin; i < some.end; ++i) {
          joinTiles(tiles + (i - top) * kStripPanels * kTileFloats, heightOf(i), panels, strip);
          finish(i, begin, panels, strip, panels * kBfloat16Tile, slot);
        }
      }
  }

  void multiplyStripTiles(const Bfloat16Products& products, Range rows, Range cols, float* tiles) const {
    const int64_t height = rows.end - rows.begin;
    for (int64_t step = 0; step < steps_[0]; step += blockSteps_) {
      const Range steps{step, std::min(step + blockSteps_, steps_[0])};
      for (int64_t j = cols.begin; j < cols.end; ++j)
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          float* const tile = tiles + ((i - rows.begin) * kStripPanels + j - cols.begin) * kTileFloats;
          const bool next = j + 1 < cols.end;
          multiplyTile(products, i, j, steps, tile,
                       fetchBlock(next ? j + 1 : cols.begin, next ? step : steps.end, blockSteps_, i - rows.begin, height));
        }
    }
  }

  static void joinTiles(const float* tiles, int64_t height, int64_t panels, float* strip) {
    for (int64_t j = 0; j < panels; ++j) copyTile(tiles + j * kTileFloats, height, strip + j * kBfloat16Tile, panels * kBfloat16Tile);
  }

  /// Steps of a chunk: all, or whole blocks.
  int64_t chunkSteps() const {
    const bool deep = steps_[0] * stepFloats_ > kDeepFloats;
    return deep ? kChunkFloats / stepFloats_ : std::max<int64_t>(1, steps_[0]);
  }
  /// Whether a panel of B is more than a block.
  bool isCut() const { return steps_[0] > blockSteps_; }
  bool isLast(Range steps) const { return steps.end == steps_[0]; }

  /// Adds the product of some steps of the first term to the tile, or begins with it; the last ones bring the second term with them.
  void multiplyTile(const Bfloat16Products& products, int64_t rowPanel, int64_t colPanel, Range steps, float* tile,
                    const Bfloat16Prefetch& prefetch) const {
    Bfloat16Segment segments[2];
    const int count = segmentsOf(rowPanel, colPanel, steps, segments);
    products.multiply(segments, count, static_cast<int>(heightOf(rowPanel)), tile, steps.begin > 0, prefetch);
  }

  int segmentsOf(int64_t rowPanel, int64_t colPanel, Range steps, Bfloat16Segment* segments) const {
    int count = 0;
    const auto add = [&](int term, Range part) {
      if (part.begin == part.end) return;
      const int64_t skipped = part.begin * stepFloats_;
      segments[count++] = {reinterpret_cast<const uint16_t*>(panelsA_[term] + rowPanel * strideA_[term] + skipped),
                           reinterpret_cast<const uint16_t*>(panelsB_[term] + colPanel * strideB_[term] + skipped),
                           part.end - part.begin, 2 * strideB_[term]};
    };
    add(0, steps);
    if (isLast(steps)) add(1, {0, steps_[1]});
    return count;
  }

  /// For rows that use B once: what is a few steps ahead of the multiplication, into the next panel at the end.
  Bfloat16Prefetch fetchAhead(int64_t colPanel) const {
    constexpr int64_t kBytesAhead = 8192;
    if (steps_[0] == 0) return {};
    return {reinterpret_cast<const char*>(panelsB_[0] + colPanel * strideB_[0]) + kBytesAhead, linesOfStep_};
  }

  /// Part `part` of `parts` of the block of B from `step` on, be it the next panel's.
  Bfloat16Prefetch fetchBlock(int64_t colPanel, int64_t step, int64_t blockSteps, int64_t part, int64_t parts) const {
    const int64_t lines = ceilDivide(linesOfStep_, parts);
    if (part * lines >= linesOfStep_ || steps_[0] == 0) return {};
    const auto* next = reinterpret_cast<const char*>(panelsB_[0] + colPanel * strideB_[0] + step * stepFloats_);
    return {next + part * lines * blockSteps * 64, lines};
  }

  void finish(int64_t rowPanel, int64_t colPanel, int64_t panels, float* values, int64_t stride, int slot) const {
    const int64_t col = colPanel * kBfloat16Tile;
    consume_({rowBegin_ + rowPanel * kBfloat16Tile, heightOf(rowPanel), colBegin_ + col,
              std::min(panels * kBfloat16Tile, cols_ - col), values, stride, slot});
  }

  int64_t heightOf(int64_t rowPanel) const { return std::min(kBfloat16Tile, rows_ - rowPanel * kBfloat16Tile); }

  OpContext& context_;
  const Product& product_;
  StripConsumer consume_;
  bool wholeStrips_;
  int64_t stepFloats_, linesOfStep_, blockSteps_;
  int64_t steps_[2];
  bool packsA_[2], packsB_[2];
  int64_t rowBegin_ = 0, rows_ = 0, colBegin_ = 0, cols_ = 0;
  const float* panelsA_[2] = {};
  int64_t strideA_[2] = {};
  const float* panelsB_[2] = {};
  int64_t strideB_[2] = {};
};

}  // namespace

const float* packRowsOnce(OpContext& context, SharedScratch& scratch, DType compute, const MatrixView& a, int64_t rows, int64_t depth) {
  if (!isBfloat16(compute)) return nullptr;
  const int64_t floats = ceilDivide(rows, kBfloat16Tile) * panelStrideOf(depth, compute);
  if (2 * floats > scratch.floatsLeft()) return nullptr;
  float* const packed = scratch.take(floats);
  packRows(context, compute, a, rows, depth, 1, packed);
  return packed;
}

void gemmBfloat16(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume, Columns columns) {
  if (product.rows == 0 || product.cols == 0) return;
  Part part(context, product, columns, consume);
  // Most rows that leave room for some columns, or for a strip of them where strips must be whole; then most columns.
  const int64_t unit = columns == Columns::FixedCuts ? kStripPanels : 1;
  const int64_t rowPanels = ceilDivide(product.rows, kBfloat16Tile), colPanels = ceilDivide(product.cols, kBfloat16Tile);
  const int64_t a = part.aPanelFloats(), b = part.bPanelFloats(), room = scratch.floatsLeft();
  const int64_t rowsAtOnce = a == 0 ? rowPanels : std::clamp<int64_t>((room - std::min(colPanels, kStripPanels) * b) / a, 1, rowPanels);
  const int64_t colsThatFit = b == 0 ? colPanels : (room - rowsAtOnce * a) / b / unit * unit;
  const int64_t colsAtOnce = std::min(colPanels, std::max(unit, colsThatFit));
  float* const packedA = a == 0 ? nullptr : scratch.take(rowsAtOnce * a);
  float* const packedB = b == 0 ? nullptr : scratch.take(colsAtOnce * b);
  for (int64_t row = 0; row < product.rows; row += rowsAtOnce * kBfloat16Tile) {
    part.setRows(row, std::min(rowsAtOnce * kBfloat16Tile, product.rows - row), packedA);
    for (int64_t col = 0; col < product.cols; col += colsAtOnce * kBfloat16Tile) {
      part.setColumns(col, std::min(colsAtOnce * kBfloat16Tile, product.cols - col), packedB);
      part.multiply();
    }
  }
}

}  // namespace rlhf::RLHF_ISA
