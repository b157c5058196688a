#pragma once
#include "cuda/prim/ptx.cuh"

namespace rlhf::cuda {

/// What the warps that share rows of a block's tile have of them, in shared memory. Where a row lies in one warp there is nothing to share.
template <class Tile, class Part>
struct RowParts {
  Part part[Tile::kWarpsPerRow][Tile::kRows];
};
template <class Tile, class Part>
  requires(Tile::kWarpsPerRow == 1)
struct RowParts<Tile, Part> {};

/// Calls leave(row, part) once for every row of the block's tile that is in D. partOf(rowSlot, row) gives what the warp has of a row, in every
/// lane that has some; it is called by all lanes, for rows behind D too. join puts parts of warps together, in the order of their columns.
template <class Tile, class Part, class PartOf, class Join, class Leave>
RLHF_DEVICE void forEachRowPart(RowParts<Tile, Part>& shared, int64_t firstRow, int64_t rows, PartOf&& partOf, Join&& join, Leave&& leave) {
#pragma unroll
  for (int slot = 0; slot < Tile::kRowSlots; ++slot) {
    const int64_t row = firstRow + Tile::rowOf(slot);
    const Part part = partOf(slot, row);
    const bool isFirstLane = threadIdx.x % Tile::kLanesPerRow == 0;
    if constexpr (Tile::kWarpsPerRow == 1) {
      if (isFirstLane && row < rows) leave(row, part);
    } else {
      if (isFirstLane) shared.part[Tile::warpInRow()][Tile::rowOf(slot)] = part;
    }
  }
  if constexpr (Tile::kWarpsPerRow > 1) {
    syncThreads();
    const int row = static_cast<int>(threadIdx.x);
    if (row >= Tile::kRows || firstRow + row >= rows) return;
    Part part = shared.part[0][row];
    for (int warp = 1; warp < Tile::kWarpsPerRow; ++warp) part = join(part, shared.part[warp][row]);
    leave(firstRow + row, part);
  }
}

}  // namespace rlhf::cuda
