#pragma once
// Which products Hopper's kernel takes, and how it is queued.

#include <tuple>

#include "cuda/hopper/matmul.cuh"
#include "cuda/prim/capability.h"

namespace rlhf::cuda {

// A row of tiles has 128 rows of D, so a thin adapter's products gain nothing here.
inline constexpr int64_t kLeastColumns = 64;

/// Whether the operand of a pair is as the kernel reads it; its extent is that of i.
inline bool isCovered(const Operand& operand, bool outer) { return operand.isAligned && operand.summedOuter == outer; }

/// Whether the device has the kernel and it takes the operands. kOuterB0 is the order of the first pair's B, where there is such a pair;
/// what decides is independent of the number of rows.
template <bool kOuterA, bool kOuterB0>
bool covers(const MatmulArguments& arguments) {
  if (chosenCapability() != 90 || arguments.cols < kLeastColumns) return false;
  const auto& [a, b] = std::tie(arguments.a, arguments.b);
  if (arguments.depth[0] > 0 && !(isCovered(a[0], kOuterA) && isCovered(b[0], kOuterB0))) return false;
  return arguments.depth[1] > 0 && isCovered(a[1], kOuterA) && isCovered(b[1], b[1].summedOuter);
}

inline TensorMap mapOf(const Operand& operand, int64_t extent, int64_t depth, int tileExtent) {
  return operand.summedOuter ? makeTensorMap(operand.data, depth, extent, operand.stride, kBoxColumns)
                             : makeTensorMap(operand.data, extent, depth, operand.stride, tileExtent);
}

template <class Tile>
HopperOperands operandsOf(const MatmulArguments& arguments) {
  HopperOperands operands{};
  operands.rows = arguments.rows;
  operands.cols = arguments.cols;
  operands.firstScale = arguments.firstScale;
  for (int pair = 0; pair < 2; ++pair) {
    const int64_t depth = arguments.depth[pair];
    if (depth == 0) continue;
    operands.tiles[pair] = tilesOf(depth, Tile::kDepth);
    operands.a[pair] = mapOf(arguments.a[pair], arguments.rows, depth, Tile::kRows);
    operands.b[pair] = mapOf(arguments.b[pair], arguments.cols, depth, Tile::kColumns);
  }
  return operands;
}

inline int blocksOf(const MatmulArguments& arguments, int columns) {
  return tilesOf(arguments.rows, 128) * tilesOf(arguments.cols, columns);
}

template <int kColumns, bool kOuterA, bool kOuterB0, bool kOuterB1, class Epilogue>
void launchTiles(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  using Tile = HopperTile<kColumns>;
  RLHF_LAUNCH((hopperMatmulKernel<Tile, kOuterA, kOuterB0, kOuterB1, Epilogue>), dim3(static_cast<uint32_t>(blocksOf(arguments, kColumns))),
              dim3(Tile::kThreads), sizeof(typename Tile::Shared), context.stream, operandsOf<Tile>(arguments), epilogue);
}

}  // namespace rlhf::cuda
