#pragma once
#include <immintrin.h>

#include "cpu/bfloat16_kernel.h"
#include "cpu/prefetch.h"

// What AMX's kernels share. Functions name the instructions that they use one by one, so that no other code of their files uses them.

#define RLHF_AMX __attribute__((target("amx-tile,amx-bf16")))

namespace rlhf::cpu {

inline constexpr int64_t kHalf = kBfloat16Tile / 2;
inline constexpr int64_t kHalfElements = kBfloat16StepElements / 2;  // of a step: 16 rows or columns

inline constexpr int kResultRowBytes = kBfloat16Tile * sizeof(float);

inline constexpr int kTileRowBytes = 64;

/// Tile 4 of 16 rows of A, and 5 of those 16 below, with the hint not to keep them in the first-level cache: that is left to B, which all rows of a group use.
RLHF_AMX inline void loadRows(const uint16_t* a) { _tile_stream_loadd(4, a, kTileRowBytes); }
RLHF_AMX inline void loadLowerRows(const uint16_t* a) { _tile_stream_loadd(5, a + kHalfElements, kTileRowBytes); }

/// C, in tiles 0 to 3, plus a step's product: 4 and 5 are the halves of A, 6 and 7 those of B.
RLHF_AMX inline void addStep(const uint16_t* a, const uint16_t* b) {
  loadRows(a);
  _tile_loadd(6, b, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  loadLowerRows(a);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(7, b + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
}

/// What a step is to ask for.
RLHF_PREFETCH inline void fetch(const Bfloat16Prefetch& prefetch, int64_t step) {
  const char* line = prefetch.next + step * prefetch.linesPerStep * 64;
  for (int64_t i = 0; i < prefetch.linesPerStep; ++i, line += 64) __builtin_prefetch(line, 0, 2);
  const char* row = prefetch.destination + step * prefetch.rowsPerStep * prefetch.destinationStride;
  for (int64_t i = 0; i < prefetch.rowsPerStep; ++i, row += prefetch.destinationStride)
    for (int64_t byte = 0; byte < kResultRowBytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
}

/// What Bfloat16Kernel::exact and exactOfPanel are with AMX.
void multiplyExact(const uint16_t* a, const uint16_t* b, int64_t steps, int rows, float* c, const AdditionBeside& beside, const Bfloat16Prefetch& prefetch);
void multiplyExactOfPanel(const uint16_t* a, const float* panel, int64_t stride, uint16_t* parts, int64_t steps, int rows, float* c,
                          const AdditionBeside& beside, const Bfloat16Prefetch& prefetch);

}  // namespace rlhf::cpu
