#pragma once
#include "cuda/matmul.cuh"

// What the ops over the vocabulary share. They take predictions in chunks, whose logits or gradients stand in scratch memory.

namespace rlhf::cuda {

inline constexpr int kVocabularyThreads = 256;

template <class Tile>
int64_t columnTiles(int64_t vocab) {
  return (vocab + Tile::kCols - 1) / Tile::kCols;
}

/// z·temperature = hidden states · headᵀ for `rows` predictions from these sources.
template <class T>
MatmulArguments logitsProduct(const void* x, int64_t cols, const LinearWeight& head, int64_t vocab, const int32_t* sources, int64_t rows) {
  MatmulArguments product;
  product.rows = rows;
  product.cols = vocab;
  product.a[1] = makeOperand<T>(x, cols, false, sources);
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
    sumRowsOfOneSourceKernel(const int32_t* sources, int64_t rows, T* dz, int64_t cols) {
  const int64_t first = blockIdx.x, col = static_cast<int64_t>(blockIdx.y) * kVocabularyThreads + threadIdx.x;
  const bool leads = first == 0 || sources[first] != sources[first - 1];
  if (!leads || first + 1 == rows || sources[first + 1] != sources[first] || col >= cols) return;
  float sum = toFloat(dz[first * cols + col]);
  for (int64_t row = first + 1; row < rows && sources[row] == sources[first]; ++row) {
    sum += toFloat(dz[row * cols + col]);
    dz[row * cols + col] = fromFloat<T>(0.0f);
  }
  dz[first * cols + col] = fromFloat<T>(sum);
}

/// dx[source] += dz·W and, where it is wanted, dW += dzᵀ·x[source], for `rows` predictions from the first one on. Uses dz up.
template <class T, class Arguments>
void addLogitGradients(OpContext& context, const Arguments& a, int64_t first, int64_t rows, T* dz) {
  using Tile = TileFor<T>;
  const int32_t* sources = a.sources + first;
  RLHF_LAUNCH(sumRowsOfOneSourceKernel<T>, logitGrid(rows, a.vocab), dim3(kVocabularyThreads), 0, context.stream, sources, rows, dz,
              a.vocab);

  MatmulArguments input;
  input.rows = rows;
  input.cols = a.cols;
  input.a[1] = makeOperand<T>(dz, a.vocab, false);
  input.b[1] = makeOperand<T>(a.head.data, a.cols, true);
  input.depth[1] = a.vocab;
  launchMatmul<Tile>(context, input, StoreEpilogue<T>{static_cast<T*>(a.dx), a.cols, 1.0f, true, sources});
  if (!a.dWeight) return;

  MatmulArguments weight;
  weight.rows = a.vocab;
  weight.cols = a.cols;
  weight.a[1] = makeOperand<T>(dz, a.vocab, true);
  weight.b[1] = makeOperand<T>(a.x, a.cols, true, sources);
  weight.depth[1] = rows;
  launchMatmul<Tile>(context, weight, StoreEpilogue<float>{static_cast<float*>(a.dWeight), a.cols, 1.0f, true});
}

}  // namespace rlhf::cuda
