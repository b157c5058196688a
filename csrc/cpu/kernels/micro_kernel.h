#pragma once
#include <cstdint>

#include "cpu/simd.h"

namespace rlhf::RLHF_ISA {

// The tile of C that a micro-kernel keeps in registers: kPanelRows × kPanelCols accumulators, two vectors wide. Per step of k it
// loads two vectors of B and broadcasts kPanelRows numbers of A. 14 × 2 accumulators, 2 of B and 1 broadcast fill AVX-512's 32
// registers all but one; 6 × 2 + 3 fill AVX2's 16. Rows are at most kWidth, so that packing is one in-register transpose.
inline constexpr int kPanelVectors = 2;
inline constexpr int kPanelCols = kPanelVectors * kWidth;
inline constexpr int kPanelRows = kWidth == 16 ? 14 : kWidth == 8 ? 6 : 4;

/// Which index of A(row, k) is contiguous in memory where A is read as it lies.
enum class Contiguous { Depth, Rows };

/// A run of `depth` values of k: a is packed [depth][rows of the tile], b is packed [depth][kPanelCols].
struct Segment {
  const float* a = nullptr;
  const float* b = nullptr;
  int64_t depth = 0;
};

/// Memory that a later call will read: each step of k asks for the line at `next` and moves on by `bytesPerStep`, so that the
/// transfer from the third-level cache is spread over the calls before.
struct Prefetch {
  const char* next = nullptr;
  int64_t bytesPerStep = 0;
};

/// C (+)= Σ over segments of A·B on one tile. Every element is one chain of multiply-adds in rising k, starting from C or from
/// 0: its bits depend neither on the tile's shape nor on where k is cut into segments and calls.
using MicroKernel = void (*)(const Segment* segments, int segmentCount, float* c, int64_t cStride, bool accumulate,
                             Prefetch prefetch);

/// The micro-kernel for a tile of `rows` in [1, kPanelRows] by `vectors` in [1, kPanelVectors] vectors of columns.
MicroKernel microKernel(int rows, int vectors);

}  // namespace rlhf::RLHF_ISA
