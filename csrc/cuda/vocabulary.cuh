#pragma once
#include <algorithm>

#include "cuda/hopper/vocabulary.h"
#include "cuda/rows.cuh"

// What the ops over the vocabulary share. They take predictions in chunks: scratch memory holds the hidden rows of one, side by side, and
// behind them its logits or gradients.

namespace rlhf::cuda {

inline constexpr int kVocabularyThreads = 256;

/// What `count` elements take of scratch memory, where the next array begins at a multiple of 256 bytes.
inline size_t alignedBytes(int64_t count, size_t elementBytes) {
  constexpr size_t kAlignment = 256;
  return (static_cast<size_t>(count) * elementBytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Elements from one row to the next of an array over the vocabulary in scratch memory: whole packs, so that rows are aligned.
template <class T>
int64_t vocabularyStride(int64_t vocab) {
  return (vocab + kWidestPack<T> - 1) / kWidestPack<T> * kWidestPack<T>;
}

/// rows[r] = x[sources[r]], a block each.
template <class T, int kPack>
__global__ void __launch_bounds__(kMaxRowThreads) gatherRowsKernel(const T* x, const int32_t* sources, int64_t cols, T* rows) {
  const T* from = x + sources[blockIdx.x] * cols;
  T* to = rows + blockIdx.x * cols;
  forEachPack<kPack>(cols, [&](int64_t col) { storePack(to + col, loadPack<kPack>(from + col)); });
}

/// The hidden rows that a chunk is predicted from, side by side at the start of scratch memory, where packs and TMA can read them.
template <class T>
const T* gatherRows(OpContext& context, const void* x, int64_t cols, const int32_t* sources, int64_t rows) {
  auto* const gathered = static_cast<T*>(context.scratch);
  const T* from = static_cast<const T*>(x);
  const auto launch = [&](auto kernel) {
    RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(rows)), dim3(static_cast<uint32_t>(threadsFor(cols))), 0, context.stream, from, sources,
                cols, gathered);
  };
  if (canPack<T>(kWidestPack<T>, {cols}, {from})) {
    launch(gatherRowsKernel<T, kWidestPack<T>>);
  } else {
    launch(gatherRowsKernel<T, 1>);
  }
  return gathered;
}

/// The scratch memory behind the hidden rows of chunks of `chunkRows`.
template <class T>
char* behindRows(OpContext& context, int64_t chunkRows, int64_t cols) {
  return static_cast<char*>(context.scratch) + alignedBytes(chunkRows * cols, sizeof(T));
}

/// How the operands of logitsProduct lie.
using LogitsOrder = Outer<false, false, false>;

/// A product over the vocabulary of which only what Epilogue<Tile> makes of each row's columns is left behind, a part for each tile of
/// columns; how many parts a row has. The tile's width does not depend on the number of rows, so neither do a row's bits.
template <class T, template <class> class Epilogue, class Arguments>
int64_t launchRowParts(OpContext& context, const MatmulArguments& product, const Arguments& arguments) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (launchHopperMatmul(context, product, Epilogue<HopperHeadSums>{arguments})) return tilesOf(product.cols, HopperHeadSums::kCols);
  }
  using Tile = TileFor<T>;
  launchMatmul<Tile, LogitsOrder>(context, product, Epilogue<Tile>{arguments});
  return tilesOf(product.cols, Tile::kCols);
}

/// z·temperature = hidden states · headᵀ for a chunk's predictions from these sources.
template <class T>
MatmulArguments logitsProduct(OpContext& context, const void* x, int64_t cols, const LinearWeight& head, int64_t vocab,
                              const int32_t* sources, int64_t rows) {
  MatmulArguments product;
  product.rows = rows;
  product.cols = vocab;
  product.a[1] = makeOperand<T>(gatherRows<T>(context, x, cols, sources, rows), cols, false);
  product.b[1] = makeOperand<T>(head.data, cols, false);
  product.depth[1] = cols;
  return product;
}

/// A block per row and kVocabularyThreads columns of its logits.
inline dim3 logitGrid(int64_t rows, int64_t vocab) {
  return dim3(static_cast<uint32_t>(rows), static_cast<uint32_t>((vocab + kVocabularyThreads - 1) / kVocabularyThreads));
}

/// The products to come are linear: of rows with the same source the first takes the sum, and the others become 0. Each hidden
/// row is then written by one row of the product, so that the order of summing is fixed.
template <class T>
__global__ void __launch_bounds__(kVocabularyThreads)
    sumRowsOfOneSourceKernel(const int32_t* sources, int64_t rows, T* dz, int64_t stride, int64_t cols) {
  const int64_t first = blockIdx.x, col = static_cast<int64_t>(blockIdx.y) * kVocabularyThreads + threadIdx.x;
  const bool leads = first == 0 || sources[first] != sources[first - 1];
  if (!leads || first + 1 == rows || sources[first + 1] != sources[first] || col >= cols) return;
  float sum = toFloat(dz[first * stride + col]);
  for (int64_t row = first + 1; row < rows && sources[row] == sources[first]; ++row) {
    sum += toFloat(dz[row * stride + col]);
    dz[row * stride + col] = fromFloat<T>(0.0f);
  }
  dz[first * stride + col] = fromFloat<T>(sum);
}

/// dx[source] += dz·W and, where it is wanted, dW += dzᵀ·x[source], for `rows` predictions from the first one on. Uses dz up, whose rows
/// are vocabularyStride apart, and the gathered rows before it.
template <class T, class Arguments>
void addLogitGradients(OpContext& context, const Arguments& a, int64_t first, int64_t rows, T* dz) {
  const int32_t* sources = a.sources + first;
  const int64_t stride = vocabularyStride<T>(a.vocab);
  RLHF_LAUNCH(sumRowsOfOneSourceKernel<T>, logitGrid(rows, a.vocab), dim3(kVocabularyThreads), 0, context.stream, sources, rows, dz,
              stride, a.vocab);

  MatmulArguments input;
  input.rows = rows;
  input.cols = a.cols;
  input.a[1] = makeOperand<T>(dz, stride, false);
  input.b[1] = makeOperand<T>(a.head.data, a.cols, true);
  input.depth[1] = a.vocab;
  multiply<T, Outer<false, true, true>>(context, input, StoreEpilogue<T>{static_cast<T*>(a.dx), a.cols, 1.0f, true, sources});
  if (!a.dWeight) return;

  MatmulArguments weight;
  weight.rows = a.vocab;
  weight.cols = a.cols;
  weight.a[1] = makeOperand<T>(dz, stride, true);
  weight.b[1] = makeOperand<T>(gatherRows<T>(context, a.x, a.cols, sources, rows), a.cols, true);
  weight.depth[1] = rows;
  multiply<T, Outer<true, true, true>>(context, weight, StoreEpilogue<float>{static_cast<float*>(a.dWeight), a.cols, 1.0f, true});
}

}  // namespace rlhf::cuda
