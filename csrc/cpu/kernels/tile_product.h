#pragma once
#include <algorithm>
#include <array>

#include "cpu/kernels/micro_kernel.h"
#include "cpu/kernels/widen.h"
#include "cpu/prefetch.h"
#include "cpu/simd.h"

// Small matrix products inside the caches, the five of attention's forward and backward passes. All
// accumulators of a register tile live in vector registers; A is read by broadcast and B along vector lanes,
// so neither is repacked. Element (r, c) of a product is a chain of fused multiply-adds in rising k, whatever
// the tile that it falls in.

namespace rlhf::RLHF_ISA {

// 6 × 4 accumulators, 4 vectors of B and a broadcast take 29 of AVX-512's 32 registers, and 6·4 independent
// chains cover the latency of two multiply-add units (4 cycles each); 6 × 2 does the same with 16 registers.
inline constexpr int kTileRows = 6;
inline constexpr int kTileVectors = kWidth == 16 ? 4 : 2;
// Few rows leave those 16 room for more: decoding's one query head goes through two lines of keys at a time.
constexpr int tileVectorsFor(int64_t rows) { return kWidth == 8 && rows <= 3 ? 2 * kTileVectors : kTileVectors; }
inline constexpr int kMostTileVectors = tileVectorsFor(1);

template <class ReaderOfB>
struct TileProductOf {
  int64_t depth;
  const float* a;
  int64_t aStride;  // of the index of A that is not contiguous
  const typename ReaderOfB::Element* b;  // [depth, columns], rows bStride apart
  int64_t bStride;
  float* c;  // [rows, columns], rows cStride apart
  int64_t cStride;
  bool accumulate;  // C += A·B instead of C = A·B
};
using TileProduct = TileProductOf<Float32>;

template <Contiguous kind, class ReaderOfB, int Rows, int Vectors, bool Partial>
void registerTile(const TileProductOf<ReaderOfB>& t, int lastCount) {
  const auto loadLast = [&]<class Reader>(Reader, const typename Reader::Element* source, bool last) {
    return Partial && last ? Reader::loadPartial(source, lastCount) : Reader::load(source);
  };
  const int64_t aStride = t.aStride, bStride = t.bStride, cStride = t.cStride;
  const float* a = t.a;
  const typename ReaderOfB::Element* b = t.b;
  float* const c = t.c;
  Vec sums[Rows][Vectors] = {};
  if (t.accumulate) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] = loadLast(Float32{}, c + r * cStride + v * kWidth, v == Vectors - 1);
  }
  for (int64_t k = 0; k < t.depth; ++k) {
    Vec row[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) row[v] = loadLast(ReaderOfB{}, b + v * kWidth, v == Vectors - 1);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = set1(kind == Contiguous::Depth ? a[r * aStride] : a[r]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] += factor * row[v];
    }
    a += kind == Contiguous::Depth ? 1 : aStride;
    b += bStride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      float* const destination = c + r * cStride + v * kWidth;
      if (Partial && v == Vectors - 1)
        storePartial(destination, sums[r][v], lastCount);
      else
        store(destination, sums[r][v]);
    }
}

template <class ReaderOfB>
using RegisterTile = void (*)(const TileProductOf<ReaderOfB>&, int lastCount);

/// Every size of register tile: entry ((rows − 1)·kMostTileVectors + vectors − 1)·2 + partial. Those with more vectors than their rows have are null.
template <Contiguous kind, class ReaderOfB>
inline constexpr auto kRegisterTiles = []<int... I>(std::integer_sequence<int, I...>) {
  const auto tile = []<int Rows, int Vectors, bool Partial>() -> RegisterTile<ReaderOfB> {
    if constexpr (Vectors <= tileVectorsFor(Rows)) return &registerTile<kind, ReaderOfB, Rows, Vectors, Partial>;
    return nullptr;
  };
  return std::array<RegisterTile<ReaderOfB>, sizeof...(I)>{
      tile.template operator()<I / 2 / kMostTileVectors + 1, I / 2 % kMostTileVectors + 1, I % 2 == 1>()...};
}(std::make_integer_sequence<int, kTileRows * kMostTileVectors * 2>{});

/// C[rows, columns] = A·B, or += A·B. The first row of A and C is t.a and t.c.
template <Contiguous kind, class ReaderOfB = Float32>
inline void multiply(int64_t rows, int64_t columns, TileProductOf<ReaderOfB> t) {
  const float* const a = t.a;
  float* const c = t.c;
  const int64_t most = tileVectorsFor(rows) * kWidth;
  for (int64_t column = 0; column < columns; column += most) {
    const int64_t width = std::min(columns - column, most);
    const int vectors = static_cast<int>((width + kWidth - 1) / kWidth);
    const int lastCount = static_cast<int>(width - (vectors - 1) * kWidth);
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int height = static_cast<int>(std::min<int64_t>(rows - row, kTileRows));
      t.a = a + (kind == Contiguous::Depth ? row * t.aStride : row);
      t.c = c + row * t.cStride + column;
      const int size = (height - 1) * kMostTileVectors + vectors - 1;
      kRegisterTiles<kind, ReaderOfB>[2 * size + (lastCount < kWidth)](t, lastCount);
    }
    t.b += most;
  }
}

/// destination[c·destinationStride + r] = factor · source[r·sourceStride + c]; the columns beyond `rows`, up
/// to a whole vector, become 0.
inline void transposeScaled(const float* source, int64_t sourceStride, int64_t rows, int64_t columns,
                            float factor, float* destination, int64_t destinationStride) {
  for (int64_t r = 0; r < rows; r += kWidth) {
    const int64_t height = std::min<int64_t>(kWidth, rows - r);
    for (int64_t c = 0; c < columns; c += kWidth) {
      const int width = static_cast<int>(std::min<int64_t>(kWidth, columns - c));
      Vec block[kWidth];
      for (int i = 0; i < kWidth; ++i)
        block[i] = i < height ? loadPartial(source + (r + i) * sourceStride + c, width) * factor : Vec{};
      transpose(block);
      for (int i = 0; i < width; ++i) store(destination + (c + i) * destinationStride + r, block[i]);
    }
  }
}

/// Asks for a tile ahead of its use: hardware prefetchers do not follow rows that are short and far apart.
RLHF_PREFETCH inline void prefetchRows(const float* source, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int64_t kLineFloats = 16;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += kLineFloats) __builtin_prefetch(source + r * stride + c, 0, 2);
}

/// Copies a tile's rows: rows far apart share few cache sets and need a page each, which contiguous ones do not.
inline void copyRows(const float* source, int64_t sourceStride, int64_t rows, int64_t columns,
                     float* destination, int64_t destinationStride) {
  if (columns <= kWidth) {
    const auto count = static_cast<int>(columns);
    for (int64_t r = 0; r < rows; ++r)
      storePartial(destination + r * destinationStride, loadPartial(source + r * sourceStride, count), count);
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(destination + r * destinationStride, source + r * sourceStride,
                static_cast<size_t>(columns) * sizeof(float));
}
inline void copyRows(const float* source, int64_t sourceStride, int64_t rows, int64_t columns, float* destination) {
  copyRows(source, sourceStride, rows, columns, destination, columns);
}

}  // namespace rlhf::RLHF_ISA
