// Log-probability, log-sum-exp and entropy of tokens without the logits: the head's product ends in an epilogue that keeps
// four numbers per row and vocabulary tile; a second kernel joins them. Backward recomputes a chunk of rows of logits.

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/warp.cuh"
#include "cuda/vocabulary.cuh"

namespace rlhf::cuda {
namespace {

// Rows that are in scratch memory at once: 394 MB of gradients for a vocabulary of 128,256. Large enough that the head's weights, read
// once per chunk, do not bound the speed (hundreds of FLOP per byte), and whole tiles; fixed, so that dWeight's order of summing is.
constexpr int64_t kChunkRows = 768;

/// A softmax over part of a row: m = max z, Σ e^{z−m}, Σ e^{z−m}·(z − m), and z of the target if it is in this part.
struct SoftmaxPart {
  float max, sum, weighted, target;
};

RLHF_DEVICE SoftmaxPart emptyPart() { return {-INFINITY, 0.0f, 0.0f, -INFINITY}; }

RLHF_DEVICE SoftmaxPart join(const SoftmaxPart& a, const SoftmaxPart& b) {
  const float max = fmaxf(a.max, b.max);
  if (max == -INFINITY) return emptyPart();
  // e^{−∞} = 0 for an empty side; its shift is 0 too, lest 0·∞ appear.
  const float shiftA = a.sum > 0 ? a.max - max : 0.0f, shiftB = b.sum > 0 ? b.max - max : 0.0f;
  const float scaleA = expf(shiftA), scaleB = expf(shiftB);
  return {max, scaleA * a.sum + scaleB * b.sum,
          scaleA * (a.weighted + shiftA * a.sum) + scaleB * (b.weighted + shiftB * b.sum), fmaxf(a.target, b.target)};
}

/// Leaves the softmax part of every row over the block's columns in parts[row, column tile].
template <class Tile>
struct StatisticsEpilogue {
  struct Shared {
    SoftmaxPart part[Tile::kWarpsPerRow][Tile::kRows];
  };

  SoftmaxPart* parts;
  int64_t columnTiles;
  const int32_t* predictions;  // of this chunk
  const int32_t* tokens;
  float* logits;  // [chunk, V] or null
  float inverseTemperature;

  RLHF_DEVICE SoftmaxPart partOfRow(Tile& tile, int rowSlot, int64_t row, int64_t firstCol, int64_t rows,
                                    int64_t cols) const {
    const int64_t token = row < rows ? tokens[predictions[row]] : -1;
    SoftmaxPart part = emptyPart();
    float z[Tile::kColSlots];
#pragma unroll
    for (int slot = 0; slot < Tile::kColSlots; ++slot) {
      const int64_t col = firstCol + Tile::colOf(slot);
      z[slot] = col < cols ? slotSum(tile, rowSlot, slot) * inverseTemperature : -INFINITY;
      if (logits && row < rows && col < cols) logits[row * cols + col] = z[slot];
      if (col == token) part.target = z[slot];
      part.max = fmaxf(part.max, z[slot]);
    }
    part.max = groupMax<Tile::kLanesPerRow>(part.max);
#pragma unroll
    for (int slot = 0; slot < Tile::kColSlots; ++slot) {
      if (firstCol + Tile::colOf(slot) >= cols) continue;
      const float e = expf(z[slot] - part.max);
      part.sum += e;
      part.weighted += e * (z[slot] - part.max);
    }
    part.sum = groupSum<Tile::kLanesPerRow>(part.sum);
    part.weighted = groupSum<Tile::kLanesPerRow>(part.weighted);
    part.target = groupMax<Tile::kLanesPerRow>(part.target);
    return part;
  }

  RLHF_DEVICE void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols,
                              Shared& shared) const {
#pragma unroll
    for (int slot = 0; slot < Tile::kRowSlots; ++slot) {
      const int row = Tile::rowOf(slot);
      const SoftmaxPart part = partOfRow(tile, slot, firstRow + row, firstCol, rows, cols);
      if (threadIdx.x % Tile::kLanesPerRow == 0) shared.part[Tile::warpInRow()][row] = part;
    }
    syncThreads();
    const int row = static_cast<int>(threadIdx.x);
    if (row >= Tile::kRows || firstRow + row >= rows) return;
    SoftmaxPart part = emptyPart();
    for (int warp = 0; warp < Tile::kWarpsPerRow; ++warp) part = join(part, shared.part[warp][row]);
    parts[(firstRow + row) * columnTiles + firstCol / Tile::kCols] = part;
  }
};

/// A warp per row: joins its parts, in an order that the number of tiles alone decides.
__global__ void __launch_bounds__(kVocabularyThreads)
    joinPartsKernel(const SoftmaxPart* parts, int64_t columnTiles, int64_t rows, const int32_t* predictions, float* logProb,
                    float* lse, float* entropy) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kVocabularyThreads + threadIdx.x) / 32;
  if (row >= rows) return;
  SoftmaxPart part = emptyPart();
  for (int64_t tile = lane; tile < columnTiles; tile += 32) part = join(part, parts[row * columnTiles + tile]);
#pragma unroll
  for (int laneMask = 16; laneMask > 0; laneMask /= 2) {
    const SoftmaxPart other{shuffleXor(part.max, laneMask), shuffleXor(part.sum, laneMask),
                            shuffleXor(part.weighted, laneMask), shuffleXor(part.target, laneMask)};
    part = join(part, other);
  }
  if (lane > 0) return;
  const int32_t token = predictions[row];
  const float logSum = logf(part.sum);
  lse[token] = part.max + logSum;
  logProb[token] = part.target - part.max - logSum;
  entropy[token] = logSum - part.weighted / part.sum;
}

/// dz of one logit from the gradients of its row's outputs.
struct LogitGradient {
  const int32_t* predictions;  // of this chunk
  const int32_t* tokens;
  const float* lse;
  const float* entropy;
  const float* dLogProb;  // each may be null
  const float* dLse;
  const float* dEntropy;
  float inverseTemperature;
  float factor;  // lossScale / temperature

  RLHF_DEVICE float operator()(int64_t row, int64_t col, float z) const {
    const int32_t t = predictions[row];
    const float logProbability = z - lse[t];
    const float probability = expf(logProbability);
    float gradient = 0;
    if (dLogProb) gradient += dLogProb[t] * ((tokens[t] == col ? 1.0f : 0.0f) - probability);
    if (dLse) gradient += dLse[t] * probability;
    if (dEntropy && probability > 0) gradient -= dEntropy[t] * probability * (logProbability + entropy[t]);
    return gradient * factor;
  }
};

/// Turns the head's product into dz[chunk, V].
template <class T>
struct LogitGradientEpilogue {
  using Shared = NoShared;

  LogitGradient gradient;
  T* dz;

  template <class Tile>
  RLHF_DEVICE void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols,
                              Shared&) const {
    forEachElement(tile, firstRow, firstCol, rows, cols, [&](int64_t row, int64_t col, float sum) {
      dz[row * cols + col] = fromFloat<T>(gradient(row, col, sum * gradient.inverseTemperature));
    });
  }
};

/// The same from logits that the forward pass kept.
template <class T>
__global__ void __launch_bounds__(kVocabularyThreads)
    logitGradientKernel(const __grid_constant__ LogitGradient gradient, const float* logits, T* dz, int64_t cols) {
  const int64_t row = blockIdx.x, col = static_cast<int64_t>(blockIdx.y) * kVocabularyThreads + threadIdx.x;
  if (col < cols) dz[row * cols + col] = fromFloat<T>(gradient(row, col, logits[row * cols + col]));
}

template <class T>
void forward(OpContext& context, const TokenLogProbForward& a) {
  using Tile = TileFor<T>;
  const int64_t tiles = columnTiles<Tile>(a.vocab);
  auto* parts = static_cast<SoftmaxPart*>(context.scratch);
  auto* logits = static_cast<float*>(a.logits);
  for (int64_t first = 0; first < a.count; first += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, a.count - first);
    const int32_t* predictions = a.predictions + first;
    const StatisticsEpilogue<Tile> statistics{parts, tiles, predictions, a.tokens, logits ? logits + first * a.vocab : nullptr,
                                              static_cast<float>(1 / a.temperature)};
    launchMatmul<Tile>(context, logitsProduct<T>(a.x, a.cols, a.head, a.vocab, a.sources + first, rows), statistics);
    constexpr int64_t kRowsPerBlock = kVocabularyThreads / 32;
    RLHF_LAUNCH(joinPartsKernel, dim3(static_cast<uint32_t>((rows + kRowsPerBlock - 1) / kRowsPerBlock)),
                dim3(kVocabularyThreads), 0, context.stream, parts, tiles, rows, predictions, static_cast<float*>(a.logProb),
                static_cast<float*>(a.lse), static_cast<float*>(a.entropy));
  }
}

/// dz of a chunk into scratch memory, from kept logits or from the head's product again.
template <class T>
void chunkGradient(OpContext& context, const TokenLogProbBackward& a, int64_t first, int64_t rows, T* dz) {
  const LogitGradient gradient{a.predictions + first,
                               a.tokens,
                               static_cast<const float*>(a.lse),
                               static_cast<const float*>(a.entropy),
                               static_cast<const float*>(a.dLogProb),
                               static_cast<const float*>(a.dLse),
                               static_cast<const float*>(a.dEntropy),
                               static_cast<float>(1 / a.temperature),
                               static_cast<float>(a.lossScale / a.temperature)};
  if (!a.logits) {
    launchMatmul<TileFor<T>>(context, logitsProduct<T>(a.x, a.cols, a.head, a.vocab, a.sources + first, rows),
                             LogitGradientEpilogue<T>{gradient, dz});
    return;
  }
  RLHF_LAUNCH(logitGradientKernel<T>, logitGrid(rows, a.vocab), dim3(kVocabularyThreads), 0, context.stream, gradient,
              static_cast<const float*>(a.logits) + first * a.vocab, dz, a.vocab);
}

template <class T>
void backward(OpContext& context, const TokenLogProbBackward& a) {
  auto* dz = static_cast<T*>(context.scratch);
  for (int64_t first = 0; first < a.count; first += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, a.count - first);
    chunkGradient<T>(context, a, first, rows, dz);
    addLogitGradients(context, a, first, rows, dz);
  }
}

}  // namespace

size_t tokenLogProbScratchBytes(int64_t rows, int64_t vocab) {
  const auto chunk = static_cast<size_t>(std::min(rows, kChunkRows));
  const size_t parts = static_cast<size_t>(columnTiles<FmaTile>(vocab)) * sizeof(SoftmaxPart);
  const size_t gradients = static_cast<size_t>(vocab) * sizeof(float);
  return chunk * std::max(parts, gradients);
}

void tokenLogProbForward(OpContext& context, const TokenLogProbForward& a) {
  requireWeightType(a.head.type, a.head.compute, a.type, "tokenLogProbForward");
  requireScratch(context, tokenLogProbScratchBytes(a.count, a.vocab), "tokenLogProbForward");
  dispatchType(a.type, "tokenLogProbForward", [&](auto zero) { forward<decltype(zero)>(context, a); });
}

void tokenLogProbBackward(OpContext& context, const TokenLogProbBackward& a) {
  requireWeightType(a.head.type, a.head.compute, a.type, "tokenLogProbBackward");
  requireScratch(context, tokenLogProbScratchBytes(a.count, a.vocab), "tokenLogProbBackward");
  dispatchType(a.type, "tokenLogProbBackward", [&](auto zero) { backward<decltype(zero)>(context, a); });
}

}  // namespace rlhf::cuda
