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
constexpr int kVectors = 2;

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

/// Lines that are asked for into the second-level cache, a part of one with each pair: widened rows leave no room for them in the first.
struct Ahead {
  const char* next;
  int64_t bytesPerPair;
  RLHF_PREFETCH void fetch() {
    __builtin_prefetch(next, 0, 2);
    next += bytesPerPair;
  }
};

/// Some steps of B for a few rows of widened A: c (+)= A·B in the columns from `col` on.
template <bool kSplit, bool kFromMemory, int kRows>
void multiplyRows(const float* a, const uint16_t* b, int64_t steps, int64_t col, float* c, bool accumulate, Ahead ahead) {
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
      if (kFromMemory) ahead.fetch();
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

// So few rows go through B in the order in which it lies, of two panels at once: AVX2's processors bring lines of memory much faster so than those of
// both halves of a panel side by side (Zen 3, one thread and row: 18 GB/s, 15 of one panel, 11 by halves side by side).
constexpr int kMostRowsInOrder = kWidth == 8 ? 3 : 0;

/// Panels of B, so many elements apart.
struct PanelsOfB {
  const uint16_t* data;
  int64_t stride;
};

/// Some steps of B for a few rows of widened A: c[panel] (+)= A·B, one half of each panel's step after the other.
template <bool kSplit, int kRows, int kPanels>
void multiplyInOrder(const float* a, PanelsOfB b, int64_t steps, float* c, bool accumulate) {
  constexpr int kHalfVectors = static_cast<int>(kHalfTile) / kWidth;
  Vec sums[kRows][kPanels][kHalfVectors];
  const auto forEachSum = [&](float* half, auto&& body) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int panel = 0; panel < kPanels; ++panel)
#pragma GCC unroll 2
        for (int v = 0; v < kHalfVectors; ++v) body(sums[i][panel][v], half + panel * kBfloat16StepElements + i * kBfloat16Tile + v * kWidth);
  };
  for (int64_t step = 0; step < steps; ++step, a += kBfloat16Tile, b.data += kElementsOfStep<kSplit>)
    for (int64_t half = 0; half < kBfloat16Tile; half += kHalfTile) {
      forEachSum(c + half, [&](Vec& sum, const float* from) { sum = accumulate || step > 0 ? load(from) : Vec{}; });
      const uint16_t* const pairsOfHalf = b.data + columnOffset(half);
      for (int64_t pair = 0; pair < kHalfTile; ++pair) {
        const auto add = [&]<Of which>(int64_t k, int64_t part) __attribute__((always_inline)) {
          const uint16_t* const pairs = pairsOfHalf + pair * kBfloat16Tile + part * kBfloat16StepElements;
#pragma GCC unroll 2
          for (int panel = 0; panel < kPanels; ++panel)
#pragma GCC unroll 2
            for (int v = 0; v < kHalfVectors; ++v) {
              const Vec column = widen<which>(pairs + panel * b.stride + columnOffset(v * kWidth));
#pragma GCC unroll 4
              for (int i = 0; i < kRows; ++i) sums[i][panel][v] += set1(a[i * kWidenedStride + k + pair]) * column;
            }
        };
        add.template operator()<Of::Earlier>(0, 0);
        if (kSplit) add.template operator()<Of::Earlier>(kLargerParts, 1);
        add.template operator()<Of::Later>(kHalfTile, 0);
        if (kSplit) add.template operator()<Of::Later>(kLargerParts + kHalfTile, 1);
      }
      forEachSum(c + half, [](const Vec& sum, float* to) { store(to, sum); });
    }
}

using RowsKernel = void (*)(const float* a, const uint16_t* b, int64_t steps, int64_t col, float* c, bool accumulate, Ahead ahead);

template <bool kSplit, bool kFromMemory, int... kRows>
constexpr std::array<RowsKernel, sizeof...(kRows)> rowsKernels(std::integer_sequence<int, kRows...>) {
  return {multiplyRows<kSplit, kFromMemory, kRows + 1>...};
}

using InOrderKernel = void (*)(const float* a, PanelsOfB b, int64_t steps, float* c, bool accumulate);

template <bool kSplit, int kPanels, int... kRows>
constexpr std::array<InOrderKernel, sizeof...(kRows)> inOrderKernels(std::integer_sequence<int, kRows...>) {
  return {multiplyInOrder<kSplit, kRows + 1, kPanels>...};
}

template <bool kSplit>
InOrderKernel inOrderKernel(int rows, int panels) {
  static constexpr auto kOne = inOrderKernels<kSplit, 1>(std::make_integer_sequence<int, kMostRowsInOrder>());
  static constexpr auto kTwo = inOrderKernels<kSplit, 2>(std::make_integer_sequence<int, kMostRowsInOrder>());
  return (panels == 1 ? kOne : kTwo)[static_cast<size_t>(rows - 1)];
}

/// c (+)= A·B of some steps of a panel, a few rows and then a few columns at a time. Where B comes from memory the steps behind them are asked for meanwhile.
template <bool kSplit, bool kFromMemory>
void multiplyPanel(const float* a, const uint16_t* b, int64_t steps, int rows, float* c, bool accumulate) {
  static constexpr auto kKernels = rowsKernels<kSplit, kFromMemory>(std::make_integer_sequence<int, kMostRows>());
  const int groups = (rows + kMostRows - 1) / kMostRows;
  const int64_t bytes = steps * kElementsOfStep<kSplit> * sizeof(uint16_t), calls = groups * kBfloat16Tile / (kVectors * kWidth);
  Ahead ahead{reinterpret_cast<const char*>(b) + bytes, bytes / (calls * steps * kHalfTile)};
  for (int group = 0; group < groups; ++group) {
    const int begin = rows * group / groups, height = rows * (group + 1) / groups - begin;
    for (int64_t col = 0; col < kBfloat16Tile; col += kVectors * kWidth, ahead.next += bytes / calls)
      kKernels[static_cast<size_t>(height - 1)](a + begin * kWidenedStride, b, steps, col, c + begin * kBfloat16Tile, accumulate, ahead);
  }
}

template <bool kSplit, bool kFromMemory>
void multiplyPanels(const float* a, PanelsOfB b, int64_t steps, int rows, int panels, float* c, bool accumulate) {
  if constexpr (kMostRowsInOrder > 0)
    if (rows <= kMostRowsInOrder) return inOrderKernel<kSplit>(rows, panels)(a, b, steps, c, accumulate);
  for (int panel = 0; panel < panels; ++panel)
    multiplyPanel<kSplit, kFromMemory>(a, b.data + panel * b.stride, steps, rows, c + panel * kBfloat16StepElements, accumulate);
}

template <bool kSplit, bool kFromMemory>
void multiplySegments(const Bfloat16Segment* segments, int segmentCount, int rows, int panels, float* c, bool accumulate) {
  alignas(64) float widened[kBfloat16Tile * kWidenedStride];
  for (int s = 0; s < segmentCount; ++s)
    for (int64_t step = 0; step < segments[s].steps; step += kStepsAtOnce<kSplit>) {
      const int64_t steps = std::min(kStepsAtOnce<kSplit>, segments[s].steps - step);
      widenRows<kSplit>(segments[s].a + step * kElementsOfStep<kSplit>, steps, rows, widened);
      const PanelsOfB b{segments[s].b + step * kElementsOfStep<kSplit>, segments[s].bStride};
      multiplyPanels<kSplit, kFromMemory>(widened, b, steps, rows, panels, c, accumulate);
      accumulate = true;
    }
  if (!accumulate)
    for (int panel = 0; panel < panels; ++panel) std::fill_n(c + panel * kBfloat16StepElements, rows * kBfloat16Tile, 0.0f);
}

template <bool kSplit>
void multiplyWidened(const Bfloat16Segment* segments, int segmentCount, int rows, float* c, bool accumulate, const Bfloat16Prefetch&) {
  multiplySegments<kSplit, false>(segments, segmentCount, rows, 1, c, accumulate);
}

template <bool kSplit>
void streamWidened(const Bfloat16Segment* segments, int segmentCount, int rows, int panels, float* c) {
  multiplySegments<kSplit, true>(segments, segmentCount, rows, panels, c, false);
}

constexpr Bfloat16Kernel kWidening{
    "convert", {multiplyWidened<false>, streamWidened<false>}, {multiplyWidened<true>, streamWidened<true>}, nullptr, nullptr, nullptr, nullptr};

}  // namespace

const Bfloat16Kernel& wideningKernel() { return kWidening; }

}  // namespace rlhf::RLHF_ISA
