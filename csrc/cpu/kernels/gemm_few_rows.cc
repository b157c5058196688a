#include "cpu/kernels/gemm_few_rows.h"

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/kernels/parallel.h"
#include "cpu/prefetch.h"

namespace rlhf::RLHF_ISA {
namespace {

// Steps of k that several panels of rows go through before the next ones: that much of B stays near while the panels take turns, and is fetched
// while they go through the steps before. AVX-512's stay in the first-level cache; AVX2's are read from the second, whose rows of six use each
// line for twelve vectors' products.
constexpr int64_t kStepsAtOnce = kWidth == 8 ? 256 : 64;
constexpr int kFetchTo = kWidth == 8 ? 2 : 3;  // as __builtin_prefetch counts: the second-level cache, or the first

// How far ahead one panel of rows asks for B: lines come to the second-level cache first, and to the first level, whose buffers for
// lines on their way are few, when little is left to wait for. Twice as far ahead a core gets a fifth less from memory.
constexpr int64_t kBytesAheadOfSecondLevel = 3072;
constexpr int64_t kBytesAheadOfFirstLevel = 1024;

// Results are handed on for several panels at once, so that each row of C is written a kilobyte at a time: two lines of every row after
// each panel, which no cache holds any more, take a fifth of the time. Rows of a strip begin in different sets of the cache.
constexpr int64_t kPanelsAtOnce = kStripCols / kPanelCols;
constexpr int64_t kStripStride = kStripCols + kPanelCols;
constexpr int64_t kStripFloats = kMostFewRows * kStripStride;
static_assert(kStripFloats * sizeof(float) <= cpu::kScratchPerThread / 2);

// Calling the other threads costs some ten microseconds, the time in which one thread reads about so many numbers of B.
constexpr int64_t kSharedElementsOfB = 1 << 17;

constexpr int64_t kBytesPerStep = kPanelCols * sizeof(float);

/// Asks for the lines that one panel of rows comes to next, of B from `next` on.
class FetchInStages {
 public:
  explicit FetchInStages(const float* b) : next_(reinterpret_cast<const char*>(b)) {}
  RLHF_PREFETCH void step() {
#pragma GCC unroll 2
    for (int64_t byte = 0; byte < kBytesPerStep; byte += 64) {
      __builtin_prefetch(next_ + kBytesAheadOfFirstLevel + byte);
      __builtin_prefetch(next_ + kBytesAheadOfSecondLevel + byte, 0, 2);
    }
    next_ += kBytesPerStep;
  }

 private:
  const char* next_;
};

/// Asks for what lies kStepsAtOnce ahead, `bytesPerStep` from `next` on: one panel's share of it, where several take turns.
class FetchInShares {
 public:
  FetchInShares(const char* next, int64_t bytesPerStep) : next_(next), bytesPerStep_(bytesPerStep) {}
  RLHF_PREFETCH void step() {
#pragma GCC unroll 2
    for (int64_t byte = 0; byte < kBytesPerStep; byte += 64) __builtin_prefetch(next_ + byte, 0, kFetchTo);
    next_ += bytesPerStep_;
  }

 private:
  const char* next_;
  int64_t bytesPerStep_;
};

/// Leaves it to the processor, which sees what comes next where several panels are read at once.
class FetchNothing {
 public:
  RLHF_PREFETCH void step() {}
};

// Panels that one panel of rows goes through side by side, where registers hold the sums: AVX2's processors bring several streams of lines from
// memory faster than one, and than lines that are asked for (Zen 3, 1 row: 46 GB/s of four, 35 of one, 29 where it is asked for). AVX-512's take one.
constexpr int panelsTogether(int rows) { return kWidth != 8 ? 1 : rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
constexpr int64_t kMostDepthOfUpdate = 1024;  // whose panels a thread's scratch memory has room for, so many together
static_assert((kStripFloats + kMostDepthOfUpdate * 4 * kPanelCols) * sizeof(float) <= cpu::kScratchPerThread);

/// Panels of B, so many floats apart.
struct PanelsOfB {
  const float* data;
  int64_t stride;
};

/// C (+)= A·B, kRows rows of some panels in a strip: micro_kernel.h's chains, with lines of B asked for in each step.
template <class Fetch, int kRows, int kPanels>
void multiplyRows(const float* a, PanelsOfB b, int64_t depth, float* c, bool accumulate, Fetch fetch) {
  constexpr int kVectors = kPanels * kPanelVectors;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[i][v] = accumulate ? load(c + i * kStripStride + v * kWidth) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    fetch.step();
    Vec row[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) row[v] = load(b.data + v / kPanelVectors * b.stride + v % kPanelVectors * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec factor = set1(a[i]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[i][v] += factor * row[v];
    }
    a += kRows;
    b.data += kPanelCols;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + i * kStripStride + v * kWidth, sum[i][v]);
}

template <class Fetch>
using RowsKernel = void (*)(const float* a, PanelsOfB b, int64_t depth, float* c, bool accumulate, Fetch fetch);

enum class Panels { One, Together };

template <class Fetch, Panels panels>
constexpr auto kRowsKernels = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<RowsKernel<Fetch>, sizeof...(I)>{multiplyRows<Fetch, I + 1, panels == Panels::One ? 1 : panelsTogether(I + 1)>...};
}(std::make_integer_sequence<int, kPanelRows>());

class FewRows {
 public:
  FewRows(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume)
      : context_(context), product_(product), consume_(consume), panelRows_(panelRowsFor(product.rows)),
        rowPanels_(ceilDivide(product.rows, panelRows_)) {
    for (int t = 0; t < 2; ++t) {
      const Term& term = product.terms[t];
      if (term.depth == 0) continue;
      packed_[t] = scratch.take(aPanelStride(panelRows_, term.depth) * rowPanels_);
      packA(term.a, product.rows, term.depth, term.factor, panelRows_, packed_[t]);
    }
  }

  void run() {
    const int64_t panels = ceilDivide(product_.cols, kPanelCols), threads = cpu::pool(context_).size();
    const int64_t tasks = std::min(panels, threads == 1 ? 1 : kTasksPerThread * threads);
    const bool share = product_.terms[0].depth * product_.cols >= kSharedElementsOfB;
    forEachTask(context_, tasks, share, [&](int64_t task, int slot) {
      const int64_t end = panels * (task + 1) / tasks;
      for (int64_t panel = panels * task / tasks; panel < end; panel += kPanelsAtOnce)
        multiplyStrip(panel, std::min(panel + kPanelsAtOnce, end), slot);
    });
  }

 private:
  static constexpr int64_t kTasksPerThread = 3;

  void multiplyStrip(int64_t begin, int64_t end, int slot) const {
    float* const sums = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
    const bool several = rowPanels_ == 1 && product_.terms[1].depth <= kMostDepthOfUpdate;
    const int64_t together = several ? panelsTogether(static_cast<int>(panelRows_)) : 1;
    for (int64_t panel = begin; panel < end;) {
      const int64_t count = end - panel < together ? 1 : together;
      multiplyPanels(panel, count, sums + (panel - begin) * kPanelCols, sums + kStripFloats);
      panel += count;
    }
    const int64_t col = begin * kPanelCols, cols = std::min(end * kPanelCols, product_.cols) - col;
    consume_({0, product_.rows, col, cols, sums, kStripStride, slot});
  }

  void multiplyPanels(int64_t panel, int64_t count, float* sums, float* packedB) const {
    const Term& main = product_.terms[0];
    const float* const b = main.packedB + panel * main.packedBStride;
    const int64_t atOnce = rowPanels_ == 1 ? main.depth : kStepsAtOnce;
    for (int64_t k = 0; k < main.depth; k += atOnce)
      multiplySteps(0, k, std::min(atOnce, main.depth - k), {b + k * kPanelCols, main.packedBStride}, count, sums, k > 0);
    const Term& update = product_.terms[1];
    if (update.depth == 0) return;
    const int64_t col = panel * kPanelCols, cols = std::min<int64_t>(count * kPanelCols, product_.cols - col), stride = update.depth * kPanelCols;
    packB(update.b.from(0, col), update.depth, cols, packedB, stride);
    multiplySteps(1, 0, update.depth, {packedB, stride}, count, sums, true);
  }

  /// Every panel of rows times the same steps of B, of one panel or of those that go together.
  void multiplySteps(int term, int64_t k, int64_t steps, PanelsOfB b, int64_t count, float* sums, bool accumulate) const {
    if (count > 1) return multiplyPart<Panels::Together>(term, 0, k, steps, b, sums, accumulate, FetchNothing());
    if (rowPanels_ == 1) return multiplyPart<Panels::One>(term, 0, k, steps, b, sums, accumulate, FetchInStages(b.data));
    const int64_t bytesPerStep = kBytesPerStep / rowPanels_;
    const char* const ahead = reinterpret_cast<const char*>(b.data + kStepsAtOnce * kPanelCols);
    for (int64_t i = 0; i < rowPanels_; ++i)
      multiplyPart<Panels::One>(term, i, k, steps, b, sums, accumulate, FetchInShares(ahead + i * steps * bytesPerStep, bytesPerStep));
  }

  template <Panels panels, class Fetch>
  void multiplyPart(int term, int64_t rowPanel, int64_t k, int64_t steps, PanelsOfB b, float* sums, bool accumulate, Fetch fetch) const {
    const int64_t row = rowPanel * panelRows_, rows = std::min(panelRows_, product_.rows - row);
    const float* const a = packed_[term] + rowPanel * aPanelStride(panelRows_, product_.terms[term].depth) + k * rows;
    kRowsKernels<Fetch, panels>[static_cast<size_t>(rows - 1)](a, b, steps, sums + row * kStripStride, accumulate, fetch);
  }

  OpContext& context_;
  const Product& product_;
  StripConsumer consume_;
  int64_t panelRows_, rowPanels_;
  float* packed_[2] = {};
};

}  // namespace

void gemmFewRows(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume) {
  FewRows(context, scratch, product, consume).run();
}

}  // namespace rlhf::RLHF_ISA
