// Embedding. Forward: a block per row. Backward without atomics and without a sort: the rows are first dealt out to buckets by their
// index, each in rising order; then the first row of every index adds all of that index up.

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/launch.cuh"
#include "cuda/prim/ptx.cuh"
#include "cuda/rows.cuh"

namespace rlhf::cuda {
namespace {

/// A row of NaN where the token or the position is not in its table: the host has checked them, and a kernel cannot throw.
template <class T, class Table, int kPack>
__global__ void __launch_bounds__(kMaxRowThreads) embeddingForwardKernel(const __grid_constant__ EmbeddingForward a) {
  const int64_t row = blockIdx.x, token = a.tokens[row], position = a.positionTable ? a.positions[row] : 0;
  const bool isKnown = token >= 0 && token < a.vocab && position >= 0 && (!a.positionTable || position < a.maxPositions);
  const Table* const tokenRow = static_cast<const Table*>(a.table) + token * a.cols;
  const Table* const positionRow = a.positionTable ? static_cast<const Table*>(a.positionTable) + position * a.cols : nullptr;
  T* const y = static_cast<T*>(a.y) + row * a.cols;
  forEachPack<kPack>(a.cols, [&](int64_t col) {
    Pack<Table, kPack> values = {}, positionValues = {};
    if (isKnown) values = loadPack<kPack>(tokenRow + col);
    if (isKnown && positionRow) positionValues = loadPack<kPack>(positionRow + col);
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float value = toFloat(values.item[i]);
      result.item[i] = fromFloat<T>(!isKnown ? NAN : positionRow ? value + toFloat(positionValues.item[i]) : value);
    }
    storePack(y + col, result);
  });
}

constexpr int kBucketWarps = 4;  // of a block, each with a bucket of its own
constexpr int kIndicesAhead = 8;  // that a lane loads before it looks at them: a load takes longer than all else here
constexpr int64_t kRowsPerBucket = 128, kMaxBuckets = 512;

/// Powers of two, for bucket = index mod buckets: neighbours of a frequent token go elsewhere.
int bucketsFor(int64_t rows) {
  int64_t buckets = 1;
  while (buckets < kMaxBuckets && buckets * kRowsPerBucket < rows) buckets *= 2;
  return static_cast<int>(buckets);
}

/// A row and where it is to be added.
struct IndexedRow {
  int32_t row, index;
};

/// Scratch memory of the backward pass.
struct Buckets {
  IndexedRow* list;  // [rows], bucket after bucket
  int32_t* begins;   // [buckets]
  int32_t* ends;     // [buckets]
  int count;

  static size_t bytes(int64_t rows) {
    return static_cast<size_t>(rows) * sizeof(IndexedRow) + 2 * static_cast<size_t>(bucketsFor(rows)) * sizeof(int32_t);
  }
  Buckets(void* memory, int64_t rows)
      : list(static_cast<IndexedRow*>(memory)), begins(reinterpret_cast<int32_t*>(list + rows)), ends(begins + bucketsFor(rows)),
        count(bucketsFor(rows)) {}
};

/// A warp per bucket reads all indices twice: to count those of the buckets before its own, then to list its own. Indices outside
/// the table are in no bucket.
__global__ void __launch_bounds__(32 * kBucketWarps)
    bucketKernel(const int32_t* indices, int64_t rows, int64_t limit, const __grid_constant__ Buckets buckets) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int bucket = static_cast<int>(blockIdx.x * kBucketWarps + threadIdx.x / 32);
  if (bucket >= buckets.count) return;
  const auto forEachIndex = [&](auto&& f) {  // f(row, index, its bucket), by all lanes; the bucket is −1 for none
    for (int64_t first = 0; first < rows; first += 32 * kIndicesAhead) {
      int32_t index[kIndicesAhead];
#pragma unroll
      for (int i = 0; i < kIndicesAhead; ++i) index[i] = first + 32 * i + lane < rows ? indices[first + 32 * i + lane] : -1;
#pragma unroll
      for (int i = 0; i < kIndicesAhead; ++i)
        f(first + 32 * i + lane, index[i], index[i] >= 0 && index[i] < limit ? index[i] & (buckets.count - 1) : -1);
    }
  };
  int32_t end = 0;
  forEachIndex([&](int64_t, int32_t, int of) { end += popCount(ballot(of >= 0 && of < bucket)); });
  if (lane == 0) buckets.begins[bucket] = end;
  forEachIndex([&](int64_t row, int32_t index, int of) {
    const uint32_t own = ballot(of == bucket), before = own & ((1u << lane) - 1);
    if (of == bucket) buckets.list[end + popCount(before)] = {static_cast<int32_t>(row), index};
    end += popCount(own);
  });
  if (lane == 0) buckets.ends[bucket] = end;
}

struct AddRowsShared {
  int isLater;  // not the first row of its index
};

/// out[index] += rows of dy in rising order, a block per listed row and kMaxRowThreads packs of its columns.
template <class T, int kPack>
__global__ void __launch_bounds__(kMaxRowThreads)
    addRowsKernel(const __grid_constant__ Buckets buckets, const T* dy, float* out, int64_t cols) {
  RLHF_SHARED_MEMORY(AddRowsShared, shared);
  const int64_t own = blockIdx.x;
  if (own >= buckets.ends[buckets.count - 1]) return;  // fewer are listed where indices were outside the table
  const int32_t index = buckets.list[own].index;
  const int bucket = index & (buckets.count - 1);
  if (threadIdx.x == 0) shared.isLater = 0;
  syncThreads();
  for (int64_t i = buckets.begins[bucket] + static_cast<int64_t>(threadIdx.x); i < own; i += blockDim.x)
    if (buckets.list[i].index == index) shared.isLater = 1;
  syncThreads();
  const int64_t col = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kPack;
  if (shared.isLater || col >= cols) return;
  auto sums = loadPack<kPack>(out + index * cols + col);
  for (int64_t i = own; i < buckets.ends[bucket]; ++i) {
    const IndexedRow each = buckets.list[i];
    if (each.index != index) continue;
    const auto gradients = loadPack<kPack>(dy + each.row * cols + col);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sums.item[j] += toFloat(gradients.item[j]);
  }
  storePack(out + index * cols + col, sums);
}

template <class T>
void addRowsByIndex(OpContext& context, const EmbeddingBackward& a, const int32_t* indices, int64_t limit, void* gradient) {
  const Buckets buckets(context.scratch, a.rows);
  const auto blocks = static_cast<uint32_t>((buckets.count + kBucketWarps - 1) / kBucketWarps);
  RLHF_LAUNCH(bucketKernel, dim3(blocks), dim3(32 * kBucketWarps), 0, context.stream, indices, a.rows, limit, buckets);

  const auto* dy = static_cast<const T*>(a.dy);
  auto* out = static_cast<float*>(gradient);
  constexpr int kPack = kWidestPack<T>;
  const bool packs = canPack<T>(kPack, {a.cols}, {dy}) && canPack<float>(kPack, {}, {out});
  const int threads = threadsFor(a.cols);
  const int64_t width = static_cast<int64_t>(threads) * (packs ? kPack : 1);
  const dim3 grid(static_cast<uint32_t>(a.rows), static_cast<uint32_t>((a.cols + width - 1) / width));
  const auto kernel = packs ? addRowsKernel<T, kPack> : addRowsKernel<T, 1>;
  RLHF_LAUNCH(kernel, grid, dim3(static_cast<uint32_t>(threads)), sizeof(AddRowsShared), context.stream, buckets, dy, out, a.cols);
}

template <class T, class Table>
void forward(OpContext& context, const EmbeddingForward& a) {
  constexpr int kPack = std::min(kWidestPack<T>, kWidestPack<Table>);
  const bool packs = canPack<T>(kPack, {a.cols}, {a.y}) && canPack<Table>(kPack, {}, {a.table, a.positionTable});
  const auto kernel = packs ? embeddingForwardKernel<T, Table, kPack> : embeddingForwardKernel<T, Table, 1>;
  RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(a.rows)), dim3(static_cast<uint32_t>(threadsFor(a.cols))), 0, context.stream, a);
}

}  // namespace

size_t embeddingScratchBytes(int64_t rows) { return Buckets::bytes(rows); }

void embeddingForward(OpContext& context, const EmbeddingForward& a) {
  dispatchType(a.type, "embeddingForward", [&](auto zero) {
    dispatchType(a.tableType, "embeddingForward",
                 [&](auto tableZero) { forward<decltype(zero), decltype(tableZero)>(context, a); });
  });
}

void embeddingBackward(OpContext& context, const EmbeddingBackward& a) {
  requireScratch(context, embeddingScratchBytes(a.rows), "embeddingBackward");
  dispatchType(a.type, "embeddingBackward", [&](auto zero) {
    addRowsByIndex<decltype(zero)>(context, a, a.tokens, a.vocab, a.dTable);
    if (a.dPositionTable) addRowsByIndex<decltype(zero)>(context, a, a.positions, a.maxPositions, a.dPositionTable);
  });
}

}  // namespace rlhf::cuda
