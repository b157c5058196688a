#include "cpu/kernels/micro_kernel.h"

#include <array>
#include <utility>

namespace rlhf::RLHF_ISA {
namespace {

template <int kRows, int kVectors>
void multiplyTile(const Segment* segments, int segmentCount, float* c, int64_t cStride, bool accumulate) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = accumulate ? load(c + i * cStride + v * kWidth) : Vec{};

  for (const Segment* segment = segments; segment != segments + segmentCount; ++segment) {
    const float* a = segment->a;
    const float* b = segment->b;
    for (int64_t k = segment->depth; k > 0; --k) {
      Vec row[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vec broadcast = set1(a[i]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[i][v] += broadcast * row[v];
      }
      a += kRows;
      b += kPanelCols;
    }
  }

#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + i * cStride + v * kWidth, sum[i][v]);
}

template <int kVectors, int... kRows>
constexpr std::array<MicroKernel, sizeof...(kRows)> tilesOf(std::integer_sequence<int, kRows...>) {
  return {multiplyTile<kRows + 1, kVectors>...};
}

constexpr auto kNarrowTiles = tilesOf<1>(std::make_integer_sequence<int, kPanelRows>());
constexpr auto kWideTiles = tilesOf<kPanelVectors>(std::make_integer_sequence<int, kPanelRows>());

}  // namespace

MicroKernel microKernel(int rows, int vectors) {
  return (vectors == 1 ? kNarrowTiles : kWideTiles)[static_cast<size_t>(rows - 1)];
}

}  // namespace rlhf::RLHF_ISA
