#include <algorithm>

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"

// Products in float32 by AMX: each number is cut into three of bfloat16 whose sum it is, and six products of parts are added (cpu/bfloat16_kernel.h).
// A is cut where it is packed; B stays float32, packed or where it lies, which is what memory has to carry, and is cut on the way to the tiles.

namespace rlhf::RLHF_ISA {
namespace {

// Sums are taken over so many values of k, counted from a term's first, and then added up: these cuts make the bits.
constexpr int64_t kBlockSteps = 4;
constexpr int64_t kBlockDepth = kBlockSteps * kBfloat16Tile;

// Fewer values of k or columns are not worth being cut up.
constexpr int64_t kFewestDepth = 320, kFewestCols = 320;

// A task takes a group of rows, which share what is cut of B. Its A lies in the second-level cache while B passes by: all of k, or where that is
// too much a chunk after the other, and tiles wait for the next chunk. Where several tasks take the same rows, these are packed once for all if that
// takes no chunks and the shared scratch memory has room.
constexpr int64_t kMostGroupPanels = 8;
constexpr int64_t kGroupFloats = 300'000;
constexpr int64_t kWholeSteps = 8 * kBlockSteps;
constexpr int64_t kChunkSteps = 4 * kBlockSteps;
constexpr int64_t kWaitingPanels = 24;  // of columns
constexpr int64_t kPackedSteps = 16;    // a task's, where rows are packed for all
constexpr int64_t kStripPanels = kStripCols / kBfloat16Tile;

constexpr int64_t kTileFloats = kBfloat16Tile * kBfloat16Tile;
constexpr int64_t kLinesPerStep = kTileFloats * sizeof(float) / 64;  // of a panel of B

// Multiply-adds that take about as long as cutting a number of B.
constexpr int64_t kWorkPerElementOfB = 8;

/// What a thread's scratch memory holds.
struct ThreadMemory {
  float* packedA;   // a chunk of a group's rows, and those of the second term, where they are the task's own
  float* panelOfB;  // a block of B, where it cannot be read where it lies
  uint16_t* partsOfB;
  float* strip;
  float* sums[2];   // of a block, in turn: one is multiplied while the other is added to its tile
  float* tiles;

  ThreadMemory(char* memory, int64_t floatsOfA) {
    packedA = reinterpret_cast<float*>(memory);
    panelOfB = packedA + floatsOfA;
    partsOfB = reinterpret_cast<uint16_t*>(panelOfB + kBlockDepth * kBfloat16Tile);
    strip = panelOfB + kBlockDepth * kBfloat16Tile + kBlockSteps * kExactStepFloats;
    sums[0] = strip + kBfloat16Tile * kStripCols;
    sums[1] = sums[0] + kTileFloats;
    tiles = sums[1] + kTileFloats;
  }
};

static_assert(kMostGroupPanels * kChunkSteps * kExactStepFloats <= kGroupFloats);
// Groups of three panels and more leave none of one where rows are shared out evenly (WaitingSums).
static_assert(kMostGroupPanels >= 3 && kGroupFloats / (kWholeSteps * kExactStepFloats) >= 3);
static_assert((kGroupFloats + kMostGroupPanels * kChunkSteps * kExactStepFloats + kBlockDepth * kBfloat16Tile + kBlockSteps * kExactStepFloats +
               kBfloat16Tile * kStripCols + 2 * kTileFloats + kWaitingPanels * kMostGroupPanels * kTileFloats) * sizeof(float) <= cpu::kScratchPerThread);

struct Range {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

/// 32 columns of B in float32, [k][32], rows `stride` floats apart.
struct PanelOfB {
  const float* values;
  int64_t stride;
};

/// Sums over a block, which the thread's next product adds to their tile; what then is done goes to the consumer. That product never writes the same tile:
/// a group has several panels of rows, or its tiles have places of their own.
struct WaitingSums {
  cpu::AdditionBeside addition;
  bool finishes = false;
  int64_t rowPanel = 0, colPanel = 0;
};

/// A thread at its task.
struct Worker {
  int slot;
  ThreadMemory memory;
  WaitingSums waiting{};
  int turn = 0;  // of memory.sums
};

class ExactProductTask {
 public:
  ExactProductTask(OpContext& context, const Product& product, Columns columns, StripConsumer consume)
      : context_(context), product_(product), consume_(consume), kernel_(bfloat16Kernel()),
        rowPanels_(ceilDivide(product.rows, kBfloat16Tile)), colPanels_(ceilDivide(product.cols, kBfloat16Tile)),
        wholeStrips_(columns == Columns::FixedCuts || rowPanels_ == 1) {}

  void run(SharedScratch scratch) {
    const int64_t threads = cpu::pool(context_).size(), tasks = threads == 1 ? 1 : (rowPanels_ == 1 ? 6 : 2) * threads;
    const int64_t rowParts = ceilDivide(rowPanels_, groupPanels());
    const int64_t unit = wholeStrips_ ? kStripPanels : 1, units = ceilDivide(colPanels_, unit);
    const int64_t colParts = std::min(units, ceilDivide(tasks, rowParts));
    const int64_t depth = product_.terms[0].depth + product_.terms[1].depth;
    const bool share = (product_.rows + kWorkPerElementOfB) * product_.cols * depth >= kSharedWork;
    const int64_t floatsOfA = rowPanels_ * (panelStride(0) + panelStride(1));
    if (colParts > 1 && !isInChunks() && floatsOfA <= scratch.floatsLeft()) packAllRows(scratch.take(floatsOfA), share);
    forEachTask(context_, rowParts * colParts, share, [&](int64_t task, int slot) {
      const int64_t row = task % rowParts, col = task / rowParts;
      kernel_.begin();
      multiplyGroup({rowPanels_ * row / rowParts, rowPanels_ * (row + 1) / rowParts},
                    {units * col / colParts * unit, std::min(colPanels_, units * (col + 1) / colParts * unit)}, slot);
      kernel_.end();
    });
  }

 private:
  /// Packed rows of both terms, panels panelStride() apart.
  struct RowsOfA {
    float* terms[2];
  };

  /// A group's rows by a chunk of k of a panel of columns, of one term.
  struct Part {
    int index;
    Range rows;
    const float* packedA;
    int64_t colPanel;
    Range chunk;
    float* tiles;
    bool finishes;  // the tiles are done behind it
  };

  static int64_t stepsOf(const Term& term) { return bfloat16Steps(term.depth); }
  /// Not up to kWholeSteps, where groups become smaller instead, nor where all rows have room with all of k.
  bool isInChunks() const {
    const int64_t steps = stepsOf(product_.terms[0]);
    return steps > kWholeSteps && rowPanels_ * steps * kExactStepFloats > kGroupFloats;
  }
  int64_t chunkSteps() const { return isInChunks() ? kChunkSteps : stepsOf(product_.terms[0]); }
  int64_t groupPanels() const { return std::min(kMostGroupPanels, kGroupFloats / panelStride(0)); }
  /// Floats of a panel of A, of a chunk of the first term and all of the second.
  int64_t panelStride(int term) const { return (term == 0 ? chunkSteps() : stepsOf(product_.terms[1])) * kExactStepFloats; }

  /// Both terms' rows in one array, from a row panel on, where the array holds `panels` of them.
  RowsOfA rowsOfA(float* packed, int64_t panels, int64_t from = 0) const {
    return {{packed + from * panelStride(0), packed + panels * panelStride(0) + from * panelStride(1)}};
  }

  void packAllRows(float* packed, bool share) {
    packedForAll_ = packed;
    for (int index = 0; index < 2; ++index) {
      const int64_t depth = product_.terms[index].depth, pieces = ceilDivide(stepsOf(product_.terms[index]), kPackedSteps);
      forEachTask(context_, rowPanels_ * pieces, share, [&](int64_t task, int) {
        const int64_t panel = task / pieces, step = task % pieces * kPackedSteps, k = step * kBfloat16Tile;
        packRows(index, {panel, panel + 1}, {k, std::min(k + kPackedSteps * kBfloat16Tile, depth)},
                 rowsOfA(packed, rowPanels_, panel).terms[index] + step * kExactStepFloats);
      });
    }
  }

  /// One task: a group of rows by a range of columns, a chunk of k after another.
  void multiplyGroup(Range rows, Range cols, int slot) const {
    const bool own = !packedForAll_;
    Worker worker{slot, {cpu::threadScratch(context_, slot), own ? rows.count() * (panelStride(0) + panelStride(1)) : 0}};
    const RowsOfA a = own ? rowsOfA(worker.memory.packedA, rows.count()) : rowsOfA(packedForAll_, rowPanels_, rows.begin);
    if (own) packRows(1, rows, {0, product_.terms[1].depth}, a.terms[1]);
    const int64_t width = isInChunks() ? kWaitingPanels : cols.count();
    const int64_t depth = product_.terms[0].depth, chunkDepth = chunkSteps() * kBfloat16Tile;
    for (int64_t col = cols.begin; col < cols.end; col += width)
      for (int64_t k = 0; k < depth; k += chunkDepth) {
        const Range chunk{k, std::min(k + chunkDepth, depth)};
        if (own && (isInChunks() || col == cols.begin)) packRows(0, rows, chunk, a.terms[0]);
        multiplyChunk(rows, a, {col, std::min(col + width, cols.end)}, chunk, worker);
      }
    addWaiting(worker);
  }

  void packRows(int index, Range rows, Range chunk, float* packed) const {
    const Term& term = product_.terms[index];
    const int64_t row = rows.begin * kBfloat16Tile, count = std::min(rows.end * kBfloat16Tile, product_.rows) - row;
    if (chunk.count() > 0) packExactA(term.a.from(row, chunk.begin), count, chunk.count(), term.factor, packed, panelStride(index));
  }

  void multiplyChunk(Range rows, const RowsOfA& a, Range cols, Range chunk, Worker& worker) const {
    const bool last = chunk.end == product_.terms[0].depth, second = product_.terms[1].depth > 0;
    for (int64_t j = cols.begin; j < cols.end; ++j) {
      // Tiles that wait for the next chunk, or for a strip to be whole, have places of their own.
      const int64_t place = isInChunks() ? j - cols.begin : wholeStrips_ ? (j - cols.begin) % kStripPanels : 0;
      float* const tiles = worker.memory.tiles + place * rows.count() * kTileFloats;
      multiplyPart({0, rows, a.terms[0], j, chunk, tiles, last && !second}, worker);
      if (!last) continue;
      if (second) multiplyPart({1, rows, a.terms[1], j, {0, product_.terms[1].depth}, tiles, true}, worker);
      if (wholeStrips_ && ((j - cols.begin + 1) % kStripPanels == 0 || j + 1 == cols.end))
        finishStrip(rows, {cols.begin + (j - cols.begin) / kStripPanels * kStripPanels, j + 1}, cols.begin, worker);
    }
  }

  void multiplyPart(const Part& part, Worker& worker) const {
    for (int64_t k = part.chunk.begin; k < part.chunk.end; k += kBlockDepth)
      multiplyBlock(part, {k, std::min(k + kBlockDepth, part.chunk.end)}, worker);
  }

  /// A block of B is cut up once, beside the first rows' product.
  void multiplyBlock(const Part& part, Range block, Worker& worker) const {
    const ThreadMemory& memory = worker.memory;
    const int64_t steps = bfloat16Steps(block.count());
    const PanelOfB b = panelOfB(part.index, part.colPanel, block, memory);
    const bool accumulate = part.index == 1 || block.begin > 0, finishes = part.finishes && block.end == part.chunk.end && !wholeStrips_;
    const float* packedA = part.packedA + (block.begin - part.chunk.begin) / kBfloat16Tile * kExactStepFloats;
    float* tile = part.tiles;
    for (int64_t i = 0; i < part.rows.count(); ++i, packedA += panelStride(part.index), tile += kTileFloats) {
      const auto* const a = reinterpret_cast<const uint16_t*>(packedA);
      const int height = static_cast<int>(heightOf(part.rows.begin + i));
      float* const sums = accumulate ? memory.sums[worker.turn ^= 1] : tile;
      const cpu::Bfloat16Prefetch prefetch = fetchedBeside(part, i, block);
      if (i == 0)
        kernel_.exactOfPanel(a, b.values, b.stride, memory.partsOfB, steps, height, sums, worker.waiting.addition, prefetch);
      else
        kernel_.exact(a, memory.partsOfB, steps, height, sums, worker.waiting.addition, prefetch);
      finishWaiting(worker);
      worker.waiting = {{sums, tile, accumulate ? height * kBfloat16Tile / 16 : 0}, finishes, part.rows.begin + i, part.colPanel};
    }
  }

  /// Behind the last product that could add them.
  void addWaiting(Worker& worker) const {
    const auto& [from, to, vectors] = worker.waiting.addition;
    for (int64_t i = 0; i < 16 * vectors; i += kWidth) store(to + i, load(to + i) + load(from + i));
    finishWaiting(worker);
  }

  /// Sums that were added wait no longer, and their tile may be done.
  void finishWaiting(Worker& worker) const {
    const WaitingSums& done = worker.waiting;
    if (done.finishes) finish(done.rowPanel, {done.colPanel, done.colPanel + 1}, done.addition.to, kBfloat16Tile, worker.slot);
    worker.waiting = {};
  }

  /// What the i-th row panel's product asks for: its share of the block of B that comes next (the first leaves that to the others: it reads ahead
  /// as it cuts), and in the last chunk some of the rows that its results go to, so that no more than a few are on their way at a time.
  cpu::Bfloat16Prefetch fetchedBeside(const Part& part, int64_t i, Range block) const {
    const Term& term = product_.terms[part.index];
    const Range chunk = part.chunk;
    const int64_t steps = bfloat16Steps(block.count());
    cpu::Bfloat16Prefetch prefetch;
    if (i > 0 && term.packedB) {
      const bool more = block.end < chunk.end;
      const int64_t panel = more ? part.colPanel : part.colPanel + 1, k = more ? block.end : chunk.begin;
      prefetch.linesPerStep = ceilDivide(kLinesPerStep, part.rows.count() - 1);
      prefetch.next = reinterpret_cast<const char*>(term.packedB + panel * term.packedBStride + k * kBfloat16Tile) +
                      (i - 1) * steps * prefetch.linesPerStep * 64;
    }
    if (part.index == 0 && product_.destination && chunk.end == term.depth) {
      const int64_t row = part.rows.begin + i, height = heightOf(row);
      const int64_t first = height * (block.begin - chunk.begin) / chunk.count(), end = height * (block.end - chunk.begin) / chunk.count();
      prefetch.destination = reinterpret_cast<const char*>(product_.destination + (row * kBfloat16Tile + first) * product_.destinationStride +
                                                           part.colPanel * kBfloat16Tile);
      prefetch.destinationStride = product_.destinationStride * static_cast<int64_t>(sizeof(float));
      prefetch.rowsPerStep = ceilDivide(end - first, steps);
    }
    return prefetch;
  }

  /// A block of B in float32, with zeros up to a whole step: where it lies, if it lies by rows and needs none.
  PanelOfB panelOfB(int index, int64_t colPanel, Range block, const ThreadMemory& memory) const {
    const Term& term = product_.terms[index];
    const int64_t floats = block.count() * kBfloat16Tile, wholeFloats = bfloat16Steps(block.count()) * kTileFloats;
    const int64_t col = colPanel * kBfloat16Tile, cols = term.packedB ? kBfloat16Tile : std::min(kBfloat16Tile, product_.cols - col);
    const MatrixView b = term.packedB ? MatrixView{term.packedB + colPanel * term.packedBStride + block.begin * kBfloat16Tile, kBfloat16Tile, 1}
                                      : term.b.from(block.begin, col);
    if (floats == wholeFloats && cols == kBfloat16Tile && b.colStride == 1 && b.type == DType::F32)
      return {static_cast<const float*>(b.data), b.rowStride};
    packB(b, block.count(), cols, memory.panelOfB, floats);
    std::fill(memory.panelOfB + floats, memory.panelOfB + wholeFloats, 0.0f);
    return {memory.panelOfB, kBfloat16Tile};
  }

  void finishStrip(Range rows, Range cols, int64_t firstCol, Worker& worker) const {
    addWaiting(worker);
    const ThreadMemory& memory = worker.memory;
    const int64_t stride = cols.count() * kBfloat16Tile;
    for (int64_t i = 0; i < rows.count(); ++i) {
      for (int64_t j = 0; j < cols.count(); ++j) {
        const int64_t place = isInChunks() ? cols.begin - firstCol + j : j;
        copyTile(memory.tiles + (place * rows.count() + i) * kTileFloats, heightOf(rows.begin + i), memory.strip + j * kBfloat16Tile, stride);
      }
      finish(rows.begin + i, cols, memory.strip, stride, worker.slot);
    }
  }

  void finish(int64_t rowPanel, Range cols, float* values, int64_t stride, int slot) const {
    const int64_t col = cols.begin * kBfloat16Tile;
    consume_({rowPanel * kBfloat16Tile, heightOf(rowPanel), col, std::min(cols.count() * kBfloat16Tile, product_.cols - col), values, stride, slot});
  }

  int64_t heightOf(int64_t rowPanel) const { return std::min(kBfloat16Tile, product_.rows - rowPanel * kBfloat16Tile); }

  OpContext& context_;
  const Product& product_;
  StripConsumer consume_;
  const cpu::Bfloat16Kernel& kernel_;
  int64_t rowPanels_, colPanels_;
  bool wholeStrips_;
  float* packedForAll_ = nullptr;  // rows that several tasks take
};

}  // namespace

bool isExactProduct(const Product& product) {
  return kPanelCols == kBfloat16Tile && !product.decoding && bfloat16Kernel().exact && product.terms[0].depth >= kFewestDepth &&
         product.terms[1].depth <= kChunkSteps * kBfloat16Tile && product.cols >= kFewestCols;
}

void gemmExact(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume, Columns columns) {
  if (product.rows > 0) ExactProductTask(context, product, columns, consume).run(scratch);
}

}  // namespace rlhf::RLHF_ISA
