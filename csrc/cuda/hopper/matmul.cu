#include "cuda/hopper/matmul.h"

#include "cuda/hopper/matmul.cuh"
#include <tuple>

#include "cuda/prim/capability.h"

namespace rlhf::cuda {
namespace {

// A row of tiles has 128 rows of D, so a thin adapter's products gain nothing here.
constexpr int64_t kLeastColumns = 64;

/// Whether the operand of a pair is as the kernel reads it; its extent is that of i.
bool isCovered(const Operand& operand, bool outer) { return operand.isAligned && !operand.sources && operand.summedOuter == outer; }

TensorMap mapOf(const Operand& operand, int64_t extent, int64_t depth, int tileExtent) {
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

int blocksOf(const MatmulArguments& arguments, int columns) { return tilesOf(arguments.rows, 128) * tilesOf(arguments.cols, columns); }

template <int kColumns, bool kOuterA, bool kOuterB0, bool kOuterB1, class Epilogue>
void launchTiles(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  using Tile = HopperTile<kColumns>;
  RLHF_LAUNCH((hopperMatmulKernel<Tile, kOuterA, kOuterB0, kOuterB1, Epilogue>), dim3(static_cast<uint32_t>(blocksOf(arguments, kColumns))),
              dim3(Tile::kThreads), sizeof(typename Tile::Shared), context.stream, operandsOf<Tile>(arguments), epilogue);
}

/// The narrower tile where the wider ones would leave multiprocessors idle. A sum's order is the same in both.
template <bool kOuterA, bool kOuterB0, bool kOuterB1, class Epilogue>
bool launch(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  if (blocksOf(arguments, 256) >= multiprocessors()) {
    launchTiles<256, kOuterA, kOuterB0, kOuterB1>(context, arguments, epilogue);
  } else {
    launchTiles<128, kOuterA, kOuterB0, kOuterB1>(context, arguments, epilogue);
  }
  return true;
}

/// kOuterB0 is the order of the first pair's B, where there is such a pair.
template <bool kOuterA, bool kOuterB0, class Epilogue>
bool covers(const MatmulArguments& arguments, const Epilogue& epilogue) {
  if (chosenCapability() != 90 || arguments.cols < kLeastColumns || !epilogue.takesPacks(arguments.cols)) return false;
  const auto& [a, b] = std::tie(arguments.a, arguments.b);
  if (arguments.depth[0] > 0 && !(isCovered(a[0], kOuterA) && isCovered(b[0], kOuterB0))) return false;
  return arguments.depth[1] > 0 && isCovered(a[1], kOuterA) && isCovered(b[1], b[1].summedOuter);
}

}  // namespace

// y = x·Wᵀ, or x·W with a weight that is stored transposed
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LinearEpilogue<bf16>& epilogue) {
  if (!covers<false, false>(arguments, epilogue)) return false;
  if (arguments.rows == 0) return true;
  return arguments.b[1].summedOuter ? launch<false, false, true>(context, arguments, epilogue)
                                    : launch<false, false, false>(context, arguments, epilogue);
}

// dx = dy·W + g·A
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<bf16>& epilogue) {
  if (!covers<false, true>(arguments, epilogue)) return false;
  if (arguments.rows == 0) return true;
  return arguments.b[1].summedOuter ? launch<false, true, true>(context, arguments, epilogue)
                                    : launch<false, true, false>(context, arguments, epilogue);
}

// dW = dyᵀ·x, whose rows are outputs or inputs
bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StoreEpilogue<float>& epilogue) {
  if (arguments.rows < kLeastColumns || !covers<true, true>(arguments, epilogue) || !arguments.b[1].summedOuter) return false;
  return launch<true, true, true>(context, arguments, epilogue);
}

}  // namespace rlhf::cuda
