#include "cpu/kernels/gemm_few_rows.h"

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/kernels/parallel.h"

namespace rlhf::RLHF_ISA {
namespace {

// Steps of k that all rows go through before the next ones: that much of B stays in the first-level cache while its rows take turns,
// and is fetched while they go through the steps before. It is also how far ahead memory wants to be asked: a core that reads 20 GB/s
// has 2 KB under way in 100 ns, and half of what there is in front of it is asked for by the time that it gets there.
constexpr int64_t kStepsAtOnce = 64;

// Calling the other threads costs some ten microseconds, the time in which one thread reads about so many numbers of B.
constexpr int64_t kSharedElementsOfB = 1 << 17;

/// What to ask for beside the multiplications: `bytesPerStep` from `next` on.
struct Fetch {
  const char* next;
  int64_t bytesPerStep;
};

/// C[kRows][kPanelCols] (+)= A·B: micro_kernel.h's chains, with two lines of B asked for in each step, or one.
template <int kRows>
void multiplyRows(const float* a, const float* b, int64_t depth, float* c, bool accumulate, Fetch fetch) {
  Vec sum[kRows][kPanelVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) sum[i][v] = accumulate ? load(c + i * kPanelCols + v * kWidth) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(fetch.next);
    __builtin_prefetch(fetch.next + 64);
    fetch.next += fetch.bytesPerStep;
    Vec row[kPanelVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) row[v] = load(b + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec factor = set1(a[i]);
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVectors; ++v) sum[i][v] += factor * row[v];
    }
    a += kRows;
    b += kPanelCols;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) store(c + i * kPanelCols + v * kWidth, sum[i][v]);
}

using RowsKernel = void (*)(const float* a, const float* b, int64_t depth, float* c, bool accumulate, Fetch fetch);

constexpr auto kRowsKernels = []<int... I>(std::integer_sequence<int, I...>) {
  return std::array<RowsKernel, sizeof...(I)>{multiplyRows<I + 1>...};
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
      for (int64_t panel = panels * task / tasks; panel < panels * (task + 1) / tasks; ++panel) multiplyPanel(panel, slot);
    });
  }

 private:
  static constexpr int64_t kTasksPerThread = 3;

  void multiplyPanel(int64_t panel, int slot) const {
    alignas(64) float sums[kMostFewRows * kPanelCols];
    const Term& main = product_.terms[0];
    const float* const b = main.packedB + panel * main.packedBStride;
    const int64_t atOnce = rowPanels_ == 1 ? main.depth : kStepsAtOnce;
    for (int64_t k = 0; k < main.depth; k += atOnce)
      multiplySteps(0, k, std::min(atOnce, main.depth - k), b + k * kPanelCols, sums, k > 0);
    const int64_t col = panel * kPanelCols, cols = std::min<int64_t>(kPanelCols, product_.cols - col);
    if (const Term& update = product_.terms[1]; update.depth > 0) {
      float* const packedB = reinterpret_cast<float*>(cpu::threadScratch(context_, slot));
      packB(update.b.from(0, col), update.depth, cols, packedB, update.depth * kPanelCols);
      multiplySteps(1, 0, update.depth, packedB, sums, true);
    }
    consume_({0, product_.rows, col, cols, sums, kPanelCols, slot});
  }

  /// Every panel of rows times the same steps of B.
  void multiplySteps(int term, int64_t k, int64_t steps, const float* b, float* sums, bool accumulate) const {
    const int64_t depth = product_.terms[term].depth;
    const int64_t bytesPerStep = static_cast<int64_t>(kPanelCols * sizeof(float)) / rowPanels_;
    const char* const ahead = reinterpret_cast<const char*>(b + kStepsAtOnce * kPanelCols);
    for (int64_t i = 0; i < rowPanels_; ++i) {
      const int64_t rows = std::min(panelRows_, product_.rows - i * panelRows_);
      const float* const a = packed_[term] + i * aPanelStride(panelRows_, depth) + k * rows;
      kRowsKernels[static_cast<size_t>(rows - 1)](a, b, steps, sums + i * panelRows_ * kPanelCols, accumulate,
                                                  {ahead + i * steps * bytesPerStep, bytesPerStep});
    }
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
