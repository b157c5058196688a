#pragma once
// The matrix product under every dense op: D(m, n) = Σ_k A(m, k)·B(n, k), summed over one or two pairs of operands in one
// main loop, then handed to an epilogue while it still is in registers.

#include "cuda/prim/accumulator.cuh"
#include "cuda/prim/launch.cuh"
#include "cuda/prim/pipeline.cuh"

namespace rlhf::cuda {

/// D = firstScale·A₀·B₀ᵀ + A₁·B₁ᵀ. The first pair is a low-rank update, or empty (depth 0): its tiles run through the same
/// pipeline and accumulators as the second's, so an adapter costs r / K more work and no further pass over D.
struct MatmulArguments {
  int rows = 0, cols = 0;
  Operand a[2], b[2];
  int depth[2] = {0, 0};
  float firstScale = 1;
};

/// Shared memory of a block: the pipeline's buffers, and after the main loop whatever the epilogue needs.
template <class Tile, class Epilogue>
union MatmulShared {
  struct Stages {
    typename Tile::TileA a[Tile::kStages];
    typename Tile::TileB b[Tile::kStages];
  } stages;
  typename Epilogue::Shared epilogue;
};

/// For epilogues that exchange nothing between threads.
struct NoShared {};

/// A block per kRows × kCols tile of D. epilogue(tile, firstRow, firstCol, rows, cols, shared) is called by all threads.
template <class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerMultiprocessor)
    matmulKernel(const __grid_constant__ MatmulArguments arguments, const __grid_constant__ Epilogue epilogue) {
  using Shared = MatmulShared<Tile, Epilogue>;
  RLHF_SHARED_MEMORY(Shared, shared);
  const int firstRow = static_cast<int>(blockIdx.x) * Tile::kRows, firstCol = static_cast<int>(blockIdx.y) * Tile::kCols;
  const int firstTiles = (arguments.depth[0] + Tile::kDepth - 1) / Tile::kDepth;
  const int tiles = firstTiles + (arguments.depth[1] + Tile::kDepth - 1) / Tile::kDepth;

  Tile sums;
  const auto load = [&](int tile, int stage) {
    const int pair = tile >= firstTiles, k = (pair ? tile - firstTiles : tile) * Tile::kDepth;
    loadTile<Tile::kThreads>(shared.stages.a[stage], arguments.a[pair], firstRow, arguments.rows, k, arguments.depth[pair]);
    loadTile<Tile::kThreads>(shared.stages.b[stage], arguments.b[pair], firstCol, arguments.cols, k, arguments.depth[pair]);
  };
  const auto consume = [&](int tile, int stage) {
    const int pair = tile >= firstTiles;
    sums.multiply(shared.stages.a[stage], arguments.a[pair].summedOuter, shared.stages.b[stage],
                  arguments.b[pair].summedOuter);
    if (tile + 1 == firstTiles) forEachSlot(sums, [&](int, int, float& sum) { sum *= arguments.firstScale; });
  };
  pipelinedLoop<Tile::kStages>(tiles, load, consume);
  epilogue(sums, firstRow, firstCol, arguments.rows, arguments.cols, shared.epilogue);
}

/// Queues the product; does nothing where D is empty.
template <class Tile, class Epilogue>
void launchMatmul(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  if (arguments.rows == 0 || arguments.cols == 0) return;
  const dim3 grid(static_cast<uint32_t>((arguments.rows + Tile::kRows - 1) / Tile::kRows),
                  static_cast<uint32_t>((arguments.cols + Tile::kCols - 1) / Tile::kCols));
  RLHF_LAUNCH((matmulKernel<Tile, Epilogue>), grid, dim3(Tile::kThreads), sizeof(MatmulShared<Tile, Epilogue>),
              context.stream, arguments, epilogue);
}

/// Calls f(row, col, sum) for every sum of the thread that is an element of D.
template <class Tile, class Function>
RLHF_DEVICE void forEachElement(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols, Function&& f) {
  forEachSlot(tile, [&](int rowSlot, int colSlot, float sum) {
    const int64_t row = firstRow + Tile::rowOf(rowSlot), col = firstCol + Tile::colOf(colSlot);
    if (row < rows && col < cols) f(row, col, sum);
  });
}

/// out(row, col) = alpha·D, or += it. With `sources`, row r goes to row sources[r], where it is the first of that number.
template <class Out>
struct StoreEpilogue {
  using Shared = NoShared;
  Out* out;
  int64_t stride;
  float alpha = 1;
  bool accumulate = false;
  const int32_t* sources = nullptr;

  template <class Tile>
  RLHF_DEVICE void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols,
                              Shared&) const {
    forEachElement(tile, firstRow, firstCol, rows, cols, [&](int64_t row, int64_t col, float sum) {
      if (sources && row > 0 && sources[row] == sources[row - 1]) return;
      Out& element = out[(sources ? sources[row] : row) * stride + col];
      element = fromFloat<Out>(accumulate ? toFloat(element) + alpha * sum : alpha * sum);
    });
  }

  bool takesPacks(int64_t cols) const { return cols % 4 == 0 && stride % 4 == 0 && isPackAligned(out) && !sources; }

  /// The same for four neighbouring columns, where the array takes packs.
  RLHF_DEVICE void storePack(int64_t row, int64_t col, Pack<float, 4> sum) const {
    Out* pack = out + row * stride + col;
#pragma unroll
    for (float& each : sum.item) each *= alpha;
    if (accumulate) addPack(sum, pack);
    writePack(pack, sum);
  }
};

}  // namespace rlhf::cuda
