#pragma once
// The matrix product under every dense op: D(m, n) = Σ_k A(m, k)·B(n, k), summed over one or two pairs of operands in one
// main loop, then handed to an epilogue while it still is in registers.

#include <tuple>

#include "core/device_code.h"
#include "cuda/prim/accumulator.cuh"
#include "cuda/prim/capability.h"
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

/// How many tiles of `extent` there are over `count` rows or columns.
template <class Count>
RLHF_HOST_DEVICE int tilesOf(Count count, int extent) { return static_cast<int>((count + extent - 1) / extent); }

/// Row and column of a block's tile, in tiles. Blocks that run at the same time shall share what they read: kGroup tiles of rows go
/// through all columns before the next kGroup do.
struct TileOrder {
  int row, col;

  RLHF_DEVICE TileOrder(int block, int rowTiles, int colTiles) {
    constexpr int kGroup = 16;
    const int group = block / (kGroup * colTiles), inGroup = block % (kGroup * colTiles);
    const int rowsOfGroup = rowTiles - group * kGroup < kGroup ? rowTiles - group * kGroup : kGroup;
    row = group * kGroup + inGroup % rowsOfGroup;
    col = inGroup / rowsOfGroup;
  }
};

// What is done with D, an epilogue, is of one of two kinds. One that works element by element has
//   void storePack(int64_t row, int64_t col, Pack<float, kCount> sums) const  for kCount neighbouring columns of D, 4 or 1, and
//   bool takesPacks(int64_t cols) const  on the host: whether its arrays may be gone through by fours;
// it is handed D by rows, through shared memory. What rows have in common it may work out before, once a thread, with
//   void onSums(Tile& sums, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols) const
// which sees the sums in registers and may change them. One that needs the block's whole tile has a struct Shared and
//   void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols, Shared& shared) const
// which all threads call with their sums in registers.

template <class Epilogue>
concept TakesTile = requires { typename Epilogue::Shared; };

template <class Epilogue, class Tile>
concept SeesSums = requires(const Epilogue& epilogue, Tile& sums, int64_t at) { epilogue.onSums(sums, at, at, at, at); };

template <class Tile, class Epilogue>
struct EpilogueShared {
  typename Tile::Staged warp[Tile::kThreads / 32];
};
template <class Tile, class Epilogue>
  requires TakesTile<Epilogue>
struct EpilogueShared<Tile, Epilogue> : Epilogue::Shared {};

/// Shared memory of a block: the pipeline's buffers, and after the main loop whatever the epilogue needs.
template <class Tile, class Epilogue>
union MatmulShared {
  struct Stages {
    typename Tile::TileA a[Tile::kStages];
    typename Tile::TileB b[Tile::kStages];
  } stages;
  EpilogueShared<Tile, Epilogue> epilogue;
};

/// Hands the warp's sums to an epilogue that works element by element.
template <class Tile, class Epilogue>
RLHF_DEVICE void storeSums(Tile& sums, typename Tile::Staged& staged, const Epilogue& epilogue, int64_t firstRow, int64_t firstCol,
                           int64_t rows, int64_t cols, bool packs) {
  if constexpr (SeesSums<Epilogue, Tile>) epilogue.onSums(sums, firstRow, firstCol, rows, cols);
#pragma unroll 1
  for (int strip = 0; strip < Tile::kStrips; ++strip) {
    sums.stage(staged, strip);
    syncWarp();
    staged.store(epilogue, firstRow + Tile::stripRow(strip), firstCol + Tile::stripCol(), rows, cols, packs);
    syncWarp();
  }
}

/// How the operands of a product lie (Operand::summedOuter), known to the kernel: those of A, alike in both pairs, and B of either pair.
template <bool kA, bool kFirstB, bool kB>
struct Outer {
  static constexpr bool kOfA = kA, kOfFirstB = kFirstB, kOfB = kB;

  static bool describes(const MatmulArguments& arguments) {
    const auto& [a, b, depth] = std::tie(arguments.a, arguments.b, arguments.depth);
    return (depth[0] == 0 || (a[0].summedOuter == kA && b[0].summedOuter == kFirstB)) &&
           (depth[1] == 0 || (a[1].summedOuter == kA && b[1].summedOuter == kB));
  }
};

/// Calls f(pair, outerB) with the pair of operands that a tile of k belongs to and a constant that tells how its B lies.
template <class Order, class Function>
RLHF_DEVICE void withPairOf(int tile, int firstTiles, Function&& f) {
  if constexpr (Order::kOfFirstB == Order::kOfB) {
    f(tile >= firstTiles, std::bool_constant<Order::kOfB>());
  } else if (tile >= firstTiles) {
    f(1, std::bool_constant<Order::kOfB>());
  } else {
    f(0, std::bool_constant<Order::kOfFirstB>());
  }
}

/// A block per kRows × kCols tile of D.
template <class Tile, class Order, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerMultiprocessor)
    matmulKernel(const __grid_constant__ MatmulArguments arguments, const __grid_constant__ Epilogue epilogue, bool packs) {
  using Shared = MatmulShared<Tile, Epilogue>;
  RLHF_SHARED_MEMORY(Shared, shared);
  const TileOrder place(static_cast<int>(blockIdx.x), tilesOf(arguments.rows, Tile::kRows), tilesOf(arguments.cols, Tile::kCols));
  const int firstRow = place.row * Tile::kRows, firstCol = place.col * Tile::kCols;
  const int firstTiles = tilesOf(arguments.depth[0], Tile::kDepth), tiles = firstTiles + tilesOf(arguments.depth[1], Tile::kDepth);

  Tile sums;
  typename Tile::Part parts[Tile::kParts];
  TileCopier<typename Tile::Element, Tile::kRows, Tile::kDepth, Tile::kThreads> copierA;
  TileCopier<typename Tile::Element, Tile::kCols, Tile::kDepth, Tile::kThreads> copierB;
  const auto load = [&](int tile, int stage) {
    withPairOf<Order>(tile, firstTiles, [&](int pair, auto outerB) {
      const int depth = arguments.depth[pair];
      copierA.template copy<Order::kOfA>(shared.stages.a[stage], arguments.a[pair], firstRow, arguments.rows, depth);
      copierB.template copy<outerB>(shared.stages.b[stage], arguments.b[pair], firstCol, arguments.cols, depth);
    });
  };
  const auto read = [&](int tile, int stage, int step, int part) {
    withPairOf<Order>(tile, firstTiles, [&](int, auto outerB) {
      Tile::template read<Order::kOfA, outerB>(parts[part], shared.stages.a[stage], shared.stages.b[stage], step);
    });
  };
  const auto compute = [&](int tile, int step, int part) {
    sums.multiply(parts[part]);
    if (tile + 1 == firstTiles && step + 1 == Tile::kDepth / Tile::kStep)
      forEachSlot(sums, [&](int, int, float& sum) { sum *= arguments.firstScale; });
  };
  pipelinedLoop<Tile::kStages, Tile::kDepth / Tile::kStep, Tile::kParts>(tiles, load, read, compute);
  if constexpr (TakesTile<Epilogue>) {
    epilogue(sums, firstRow, firstCol, arguments.rows, arguments.cols, shared.epilogue);
  } else {
    storeSums(sums, shared.epilogue.warp[threadIdx.x / 32], epilogue, firstRow, firstCol, arguments.rows, arguments.cols, packs);
  }
}

/// Queues the product; does nothing where D is empty.
template <class Tile, class Order, class Epilogue>
void launchMatmul(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  if (!Order::describes(arguments)) throw Error(code::kInternal, "matrix product: the operands lie otherwise than the kernel takes them");
  const int blocks = tilesOf(arguments.rows, Tile::kRows) * tilesOf(arguments.cols, Tile::kCols);
  if (blocks == 0) return;
  bool packs = false;
  if constexpr (!TakesTile<Epilogue>) packs = epilogue.takesPacks(arguments.cols);
  static const std::string name = format("matmulKernel, tiles of %d × %d", Tile::kRows, Tile::kCols);
  launchKernel(name.c_str(), matmulKernel<Tile, Order, Epilogue>, dim3(static_cast<uint32_t>(blocks)), dim3(Tile::kThreads),
               sizeof(MatmulShared<Tile, Epilogue>), context.stream, arguments, epilogue, packs);
}

/// Whether wide tiles keep all multiprocessors busy and compute at most an eighth more columns than others do.
inline bool suitsWideTiles(const MatmulArguments& arguments) {
  const int rowTiles = tilesOf(arguments.rows, 128), wide = tilesOf(arguments.cols, 256), narrow = tilesOf(arguments.cols, 128);
  return 8 * (2 * wide - narrow) <= narrow && rowTiles * wide >= multiprocessors();
}

/// launchMatmul with the tile that suits the product. A sum's order is the same in all, so that the number of rows may decide.
template <class T, class Order, class Epilogue>
void launchProduct(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  if constexpr (!std::is_same_v<T, float>) {
    if (arguments.cols <= ThinTile<T>::kCols) return launchMatmul<ThinTile<T>, Order>(context, arguments, epilogue);
    if (suitsWideTiles(arguments)) return launchMatmul<WideTile<T>, Order>(context, arguments, epilogue);
  }
  launchMatmul<TileFor<T>, Order>(context, arguments, epilogue);
}

/// out(row, col) = alpha·D, or += it. With `sources`, row r goes to row sources[r], where it is the first of that number.
template <class Out>
struct StoreEpilogue {
  Out* out;
  int64_t stride;
  float alpha = 1;
  bool accumulate = false;
  const int32_t* sources = nullptr;

  bool takesPacks(int64_t cols) const { return cols % 4 == 0 && stride % 4 == 0 && isPackAligned(out); }

  /// What kCount elements of D are added to.
  template <int kCount = 4>
  RLHF_DEVICE Pack<Out, kCount> readPack(int64_t row, int64_t col) const {
    if (!accumulate || !isStored(row)) return {};
    return *reinterpret_cast<const Pack<Out, kCount>*>(at(row, col));
  }

  template <int kCount>
  RLHF_DEVICE void storePack(int64_t row, int64_t col, Pack<float, kCount> sum, const Pack<Out, kCount>& stored) const {
    if (!isStored(row)) return;
#pragma unroll
    for (float& each : sum.item) each *= alpha;
    if (accumulate) addPack(sum, stored.item);
    writePack(at(row, col), sum);
  }

  template <int kCount>
  RLHF_DEVICE void storePack(int64_t row, int64_t col, const Pack<float, kCount>& sum) const {
    storePack(row, col, sum, readPack<kCount>(row, col));
  }

 private:
  RLHF_DEVICE bool isStored(int64_t row) const { return !sources || row == 0 || sources[row] != sources[row - 1]; }
  RLHF_DEVICE Out* at(int64_t row, int64_t col) const { return out + (sources ? sources[row] : row) * stride + col; }
};

}  // namespace rlhf::cuda
