#include <algorithm>
#include <array>
#include <utility>

#include "cpu/kernels/bfloat16.h"
#include "cpu/kernels/bfloat16_parts.h"
#include "cpu/prefetch.h"

// Products in bfloat16 where the processor has no instruction for them: factors are widened to float32 again, A into the first-level cache and B in
// registers, and multiplied and added in rising k. Of split factors A's are put together again, which is exact, so that two multiply-adds take the
// place of three: a·b for a's parts together and b's larger one, and a's larger one by what rounding left of b.

namespace rlhf::RLHF_ISA {
namespace {

using cpu::Bfloat16Kernel;
using cpu::Bfloat16Parts;
using cpu::Bfloat16Prefetch;
using cpu::Bfloat16Segment;

constexpr int64_t kHalfTile = kBfloat16Tile / 2;

// Widened rows of A and the block of B that they meet, with its tile of C, take most of a first-level cache of 32 KB.
template <bool kSplit>
constexpr int64_t kStepsAtOnce = kSplit ? 2 : 4;
constexpr int64_t kWidenedStride = kStepsAtOnce<false> * kBfloat16Tile;

// Accumulators: 12 vectors of AVX2's 16 registers, 16 of AVX-512's 32.
constexpr int kMostRows = kWidth == 16 ? 8 : kWidth == 8 ? 6 : 4;
constexpr int kNarrowVectors = 2;
// So few rows leave registers for all columns of a panel.
constexpr int kRowsOfWholePanel = kWidth == 4 ? 0 : 3;
constexpr int kVectorsOfPanel = static_cast<int>(kBfloat16Tile) / kWidth;

// How far ahead B is asked for where it comes from memory.
constexpr int64_t kBytesAhead = 2048;

/// Pairs of numbers as they lie.
typedef uint32_t PairsInMemory __attribute__((vector_size(sizeof(BitVec)), aligned(alignof(uint16_t)), may_alias));

/// One number of each pair, as float32. Read anew for each of the two: sixteen registers do not hold both beside the sums, and the compiler
/// would keep them.
enum class Of { Earlier, Later };
template <Of which>
Vec widen(const uint16_t* pairs) {
  const BitVec bits = *reinterpret_cast<const volatile PairsInMemory*>(pairs);
  return std::bit_cast<Vec>(which == Of::Earlier ? bits << 16 : bits & 0xffff0000u);
}

template <bool kSplit>
constexpr int64_t kElementsOfStep = Bfloat16Parts<kSplit>::kCount * kBfloat16StepElements;

// Of a row of widened A, split: steps of the parts' sums, and so many numbers behind them those of the larger parts.
constexpr int64_t kLargerParts = kStepsAtOnce<true> * kBfloat16Tile;
static_assert(2 * kLargerParts == kWidenedStride);

/// widened[row][step][k % 2][k / 2] of rows of A.
template <bool kSplit>
void widenRows(const uint16_t* a, int64_t steps, int rows, float* widened) {
  const auto widenHalves = [](const uint16_t* source, float* to, auto which) {
    const Vec larger = widen<which()>(source);
    store(to, kSplit ? larger + widen<which()>(source + kBfloat16StepElements) : larger);
    if (kSplit) store(to + kLargerParts, larger);
  };
  for (int row = 0; row < rows; ++row)
    for (int64_t step = 0; step < steps; ++step) {
      const uint16_t* const source = a + step * kElementsOfStep<kSplit> + row * kBfloat16Tile;
      float* const to = widened + row * kWidenedStride + step * kBfloat16Tile;
      for (int64_t pair = 0; pair < kHalfTile; pair += kWidth) {
        widenHalves(source + 2 * pair, to + pair, std::integral_constant<Of, Of::Earlier>{});
        widenHalves(source + 2 * pair, to + kHalfTile + pair, std::integral_constant<Of, Of::Later>{});
      }
    }
}

/// Where a column of a panel of B begins, in elements.
constexpr int64_t columnOffset(int64_t col) { return col / kHalfTile * (kBfloat16StepElements / 2) + col % kHalfTile * 2; }

/// Asks for what lies behind the pairs of so many vectors, a line in each half of a panel and each part.
template <bool kSplit, int kVectors>
RLHF_PREFETCH inline void fetch(const uint16_t* pairs) {
  constexpr int64_t kParts = Bfloat16Parts<kSplit>::kCount;
  for (int64_t part = 0; part < kParts; ++part)
    for (int64_t col = 0; col < kVectors * kWidth; col += kHalfTile)
      __builtin_prefetch(reinterpret_cast<const char*>(pairs + part * kBfloat16StepElements + columnOffset(col)) + kParts * kBytesAhead);
}

/// Some steps of B for a few rows of widened A: c (+)= A·B in the columns from `col` on.
template <bool kSplit, bool kFromMemory, int kRows, int kVectors>
void multiplyRows(const float* a, const uint16_t* b, int64_t steps, int64_t col, float* c, bool accumulate) {
  Vec sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[i][v] = accumulate ? load(c + i * kBfloat16Tile + col + v * kWidth) : Vec{};
  const auto add = [&]<Of which>(int64_t k, const uint16_t* pairs) __attribute__((always_inline)) {
    Vec row[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) row[v] = widen<which>(pairs + columnOffset(v * kWidth));
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec factor = set1(a[i * kWidenedStride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] += factor * row[v];
    }
  };
  b += columnOffset(col);
  for (int64_t step = 0; step < steps; ++step, a += kBfloat16Tile, b += kElementsOfStep<kSplit>)
    for (int64_t pair = 0; pair < kHalfTile; ++pair) {
      const uint16_t* const pairs = b + pair * kBfloat16Tile;
      if (kFromMemory) fetch<kSplit, kVectors>(pairs);
      add.template operator()<Of::Earlier>(pair, pairs);
      if (kSplit) add.template operator()<Of::Earlier>(kLargerParts + pair, pairs + kBfloat16StepElements);
      add.template operator()<Of::Later>(kHalfTile + pair, pairs);
      if (kSplit) add.template operator()<Of::Later>(kLargerParts + kHalfTile + pair, pairs + kBfloat16StepElements);
    }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + i * kBfloat16Tile + col + v * kWidth, sums[i][v]);
}

// One row from memory: AVX2's processors bring lines in the order in which they lie, of two panels at once, much faster than both halves of a panel
// side by side (Zen 3, one thread: 18 GB/s, 15 of one panel, 11 by halves side by side).
constexpr bool kRowInOrder = kWidth == 8;

/// Panels of B, so many elements apart.
struct PanelsOfB {
  const uint16_t* data;
  int64_t stride;
};

/// Some steps of B for one row of widened A: c[panel][0] (+)= A·B, one half of each panel's step after the other.
template <bool kSplit, int kPanels>
void multiplyRowInOrder(const float* a, PanelsOfB b, int64_t steps, float* c, bool accumulate) {
  constexpr int kVectors = kVectorsOfPanel / 2;
  Vec sums[kPanels][2][kVectors];
  const auto forEachSum = [&](auto&& body) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int panel = 0; panel < kPanels; ++panel)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) body(sums[panel][half][v], c + panel * kBfloat16StepElements + half * kHalfTile + v * kWidth);
  };
  forEachSum([&](Vec& sum, const float* from) { sum = accumulate ? load(from) : Vec{}; });
  for (int64_t step = 0; step < steps; ++step, a += kBfloat16Tile, b.data += kElementsOfStep<kSplit>)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
      for (int64_t pair = 0; pair < kHalfTile; ++pair) {
        const uint16_t* const pairs = b.data + columnOffset(half * kHalfTile) + pair * kBfloat16Tile;
        const auto add = [&]<Of which>(int64_t k, int64_t part) __attribute__((always_inline)) {
          const Vec factor = set1(a[k + pair]);
#pragma GCC unroll 2
          for (int panel = 0; panel < kPanels; ++panel)
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v)
              sums[panel][half][v] += factor * widen<which>(pairs + panel * b.stride + part * kBfloat16StepElements + columnOffset(v * kWidth));
        };
        add.template operator()<Of::Earlier>(0, 0);
        if (kSplit) add.template operator()<Of::Earlier>(kLargerParts, 1);
        add.template operator()<Of::Later>(kHalfTile, 0);
        if (kSplit) add.template operator()<Of::Later>(kLargerParts + kHalfTile, 1);
      }
  forEachSum([](const Vec& sum, float* to) { store(to, sum); });
}

using RowsKernel = void (*)(const float* a, const uint16_t* b, int64_t steps, int64_t col, float* c, bool accumulate);

template <bool kSplit, bool kFromMemory, int kVectors, int... kRows>
constexpr std::array<RowsKernel, sizeof...(kRows)> rowsKernels(std::integer_sequence<int, kRows...>) {
  return {multiplyRows<kSplit, kFromMemory, kRows + 1, kVectors>...};
}

/// c (+)= A·B of some steps, a few rows and then a few columns at a time. B comes from memory with the first rows.
template <bool kSplit, bool kFromMemory>
void multiplyWidenedRows(const float* a, const uint16_t* b, int64_t steps, int rows, float* c, bool accumulate) {
  static constexpr auto kNarrow = rowsKernels<kSplit, false, kNarrowVectors>(std::make_integer_sequence<int, kMostRows>());
  static constexpr auto kNarrowFromMemory = rowsKernels<kSplit, kFromMemory, kNarrowVectors>(std::make_integer_sequence<int, kMostRows>());
  if constexpr (kRowsOfWholePanel > 0) {
    static constexpr auto kWhole = rowsKernels<kSplit, kFromMemory, kVectorsOfPanel>(std::make_integer_sequence<int, kRowsOfWholePanel>());
    if (rows <= kRowsOfWholePanel) return kWhole[static_cast<size_t>(rows - 1)](a, b, steps, 0, c, accumulate);
  }
  const int groups = (rows + kMostRows - 1) / kMostRows;
  for (int group = 0; group < groups; ++group) {
    const int begin = rows * group / groups, height = rows * (group + 1) / groups - begin;
    const RowsKernel kernel = (group == 0 ? kNarrowFromMemory : kNarrow)[static_cast<size_t>(height - 1)];
    for (int64_t col = 0; col < kBfloat16Tile; col += kNarrowVectors * kWidth)
      kernel(a + begin * kWidenedStride, b, steps, col, c + begin * kBfloat16Tile, accumulate);
  }
}

/// One panel of B, the segments' `panel`, or for one row from memory two of them from there on.
template <bool kSplit, bool kFromMemory>
void multiplySegments(const Bfloat16Segment* segments, int segmentCount, int panel, int panels, int rows, float* c, bool accumulate) {
  alignas(64) float widened[kBfloat16Tile * kWidenedStride];
  for (int s = 0; s < segmentCount; ++s)
    for (int64_t step = 0; step < segments[s].steps; step += kStepsAtOnce<kSplit>) {
      const int64_t steps = std::min(kStepsAtOnce<kSplit>, segments[s].steps - step);
      widenRows<kSplit>(segments[s].a + step * kElementsOfStep<kSplit>, steps, rows, widened);
      const PanelsOfB b{segments[s].b + panel * segments[s].bStride + step * kElementsOfStep<kSplit>, segments[s].bStride};
      if (kFromMemory && kRowInOrder && rows == 1)
        (panels == 2 ? multiplyRowInOrder<kSplit, 2> : multiplyRowInOrder<kSplit, 1>)(widened, b, steps, c, accumulate);
      else
        multiplyWidenedRows<kSplit, kFromMemory>(widened, b.data, steps, rows, c, accumulate);
      accumulate = true;
    }
  if (!accumulate)
    for (int p = 0; p < panels; ++p) std::fill_n(c + p * kBfloat16StepElements, rows * kBfloat16Tile, 0.0f);
}

template <bool kSplit>
void multiplyWidened(const Bfloat16Segment* segments, int segmentCount, int rows, float* c, bool accumulate, const Bfloat16Prefetch&) {
  multiplySegments<kSplit, false>(segments, segmentCount, 0, 1, rows, c, accumulate);
}

template <bool kSplit>
void streamWidened(const Bfloat16Segment* segments, int segmentCount, int rows, int panels, float* c) {
  const int together = kRowInOrder && rows == 1 ? panels : 1;
  for (int panel = 0; panel < panels; panel += together)
    multiplySegments<kSplit, true>(segments, segmentCount, panel, together, rows, c + panel * kBfloat16StepElements, false);
}

constexpr Bfloat16Kernel kWidening{
    "convert", {multiplyWidened<false>, streamWidened<false>}, {multiplyWidened<true>, streamWidened<true>}, nullptr, nullptr, nullptr, nullptr};

}  // namespace

const Bfloat16Kernel& wideningKernel() { return kWidening; }

}  // namespace rlhf::RLHF_ISA
