#include "cpu/kernels/direct_kernel.h"

#include <array>
#include <utility>

#include "cpu/prefetch.h"

namespace rlhf::RLHF_ISA {
namespace {

/// Addresses of a tile's numbers of A for one k. Rows far apart are reached from every third one, which an address of base and
/// scaled index does without a register for each row.
template <Contiguous kind, int kRows>
class LeftOperand {
 public:
  LeftOperand(const float* a, int64_t stride) : stride_(stride) {
    for (int i = 0; i < kBases; ++i) bases_[i] = a + (kind == Contiguous::Depth ? 3 * i * stride : 0);
  }
  float operator()(int row, int step) const {
    if constexpr (kind == Contiguous::Rows) return bases_[0][step * stride_ + row];
    const float* const base = bases_[row / 3];
    return row % 3 == 0 ? base[step] : row % 3 == 1 ? (base + stride_)[step] : (base + 2 * stride_)[step];
  }
  RLHF_PREFETCH void fetch(int step) const { __builtin_prefetch(bases_[0] + step * stride_); }
  void advance(int steps) {
    for (const float*& base : bases_) base += kind == Contiguous::Depth ? steps : steps * stride_;
  }

 private:
  static constexpr int kBases = kind == Contiguous::Depth ? (kRows + 2) / 3 : 1;
  const float* bases_[kBases];
  int64_t stride_;
};

/// Rows that are far apart are asked for so many steps before their use: no hardware prefetcher follows them all.
constexpr int kStepsAhead = 20;

/// Asks for the lines of a row of B.
RLHF_PREFETCH inline void fetch(const float* row, int vectors) {
  for (int v = 0; v < vectors; ++v) __builtin_prefetch(row + v * kWidth);
}

template <Contiguous kind, int kRows, int kVectors>
void multiplyTile(const DirectSegment& segment, float* c, int64_t cStride, bool accumulate, DirectPrefetch prefetch) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = accumulate ? load(c + i * cStride + v * kWidth) : Vec{};

  LeftOperand<kind, kRows> a(segment.a, segment.aStride);
  const float* b = segment.b;
  const int64_t bStride = segment.bStride;
  const auto step = [&](int ahead, const float* source) __attribute__((always_inline)) {
    Vec row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = load(source + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec broadcast = set1(a(i, ahead));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += broadcast * row[v];
    }
  };
  int64_t k = segment.depth;
  for (; k >= 2; k -= 2) {
    if constexpr (kind == Contiguous::Rows) {
      a.fetch(kStepsAhead), a.fetch(kStepsAhead + 1);
      fetch(b + kStepsAhead * bStride, kVectors), fetch(b + (kStepsAhead + 1) * bStride, kVectors);
    } else {
      __builtin_prefetch(prefetch.source.next);
      __builtin_prefetch(prefetch.destination.next, 1);
      prefetch.source.next += prefetch.source.bytesPerStep;
      prefetch.destination.next += prefetch.destination.bytesPerStep;
    }
    step(0, b);
    step(1, b + bStride);
    a.advance(2);
    b += 2 * bStride;
  }
  if (k > 0) step(0, b);

#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + i * cStride + v * kWidth, sum[i][v]);
}

template <Contiguous kind, int kVectors, int... kRows>
constexpr std::array<DirectKernel, sizeof...(kRows)> tilesOf(std::integer_sequence<int, kRows...>) {
  return {multiplyTile<kind, kRows + 1, kVectors>...};
}

template <Contiguous kind>
constexpr std::array<DirectKernel, kPanelRows> kTiles[kPanelVectors] = {
    tilesOf<kind, 1>(std::make_integer_sequence<int, kPanelRows>()),
    tilesOf<kind, 2>(std::make_integer_sequence<int, kPanelRows>()),
};

}  // namespace

DirectKernel directKernel(Contiguous kind, int rows, int vectors) {
  const auto& tiles = kind == Contiguous::Depth ? kTiles<Contiguous::Depth> : kTiles<Contiguous::Rows>;
  return tiles[vectors - 1][static_cast<size_t>(rows - 1)];
}

}  // namespace rlhf::RLHF_ISA
