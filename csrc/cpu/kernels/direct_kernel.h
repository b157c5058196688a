#pragma once
#include <cstdint>

#include "cpu/kernels/micro_kernel.h"

namespace rlhf::RLHF_ISA {

/// A run of k of operands that lie in memory as they are: A by rows or by columns, B [depth, columns] with rows `bStride` apart.
struct DirectSegment {
  const float* a = nullptr;
  int64_t aStride = 0;
  const float* b = nullptr;
  int64_t bStride = 0;
  int64_t depth = 0;
};

/// Memory that the calls after this one read, and where their results will go: a line of each is asked for at every second step of k.
struct DirectPrefetch {
  Prefetch source, destination;
};

/// C (+)= A·B on one tile, with the bits of MicroKernel: for products so small that packing A costs a good part of them.
using DirectKernel = void (*)(const DirectSegment& segment, float* c, int64_t cStride, bool accumulate, DirectPrefetch prefetch);

/// The kernel for a tile of `rows` in [1, kPanelRows] by `vectors` in [1, kPanelVectors] vectors of columns.
DirectKernel directKernel(Contiguous kind, int rows, int vectors);

}  // namespace rlhf::RLHF_ISA
