// Log-probability, log-sum-exp and entropy of tokens without the logits: the head's product ends in an epilogue that keeps
// four numbers per row and vocabulary tile; a second kernel joins them. Backward recomputes a chunk of rows of logits.

#include "cuda/token_log_prob.cuh"

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/vocabulary.cuh"

namespace rlhf::cuda {
namespace {

// Rows that are in scratch memory at once: 394 MB of gradients for a vocabulary of 128,256 in float32, 263 MB in 16 bits. Large enough that
// the head's weights, read once per chunk, do not bound the speed (hundreds of FLOP per byte), and whole tiles; fixed, so that dWeight's order
// of summing is. 1024 rows of 2048 hidden numbers are 128 tiles of dx, near an H200's 132 multiprocessors.
template <class T>
constexpr int64_t kChunkRows = sizeof(T) == sizeof(float) ? 768 : 1024;

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

/// dz[chunk, V] from logits that the forward pass kept.
template <class T>
__global__ void __launch_bounds__(kVocabularyThreads)
    logitGradientKernel(const __grid_constant__ LogitGradient gradient, const float* logits, T* dz, int64_t stride, int64_t cols) {
  const int64_t row = blockIdx.x, col = static_cast<int64_t>(blockIdx.y) * kVocabularyThreads + threadIdx.x;
  if (col >= cols) return;
  const LogitGradient::Row own = gradient.ofRow(row);
  dz[row * stride + col] = fromFloat<T>(LogitGradient::at<T>(own, col == own.token, logits[row * cols + col]));
}

template <class T>
void forward(OpContext& context, const TokenLogProbForward& a) {
  auto* const parts = reinterpret_cast<SoftmaxPart*>(behindRows<T>(context, std::min(a.count, kChunkRows<T>), a.cols));
  auto* const logits = static_cast<float*>(a.logits);
  for (int64_t first = 0; first < a.count; first += kChunkRows<T>) {
    const int64_t rows = std::min(kChunkRows<T>, a.count - first);
    const int32_t* predictions = a.predictions + first;
    const Statistics statistics{parts, predictions, a.tokens, logits ? logits + first * a.vocab : nullptr,
                                static_cast<float>(1 / a.temperature)};
    const int64_t tiles =
        launchRowParts<T, StatisticsEpilogue>(context, logitsProduct<T>(context, a.x, a.cols, a.head, a.vocab, a.sources + first, rows), statistics);
    constexpr int64_t kRowsPerBlock = kVocabularyThreads / 32;
    RLHF_LAUNCH(joinPartsKernel, dim3(static_cast<uint32_t>((rows + kRowsPerBlock - 1) / kRowsPerBlock)), dim3(kVocabularyThreads), 0,
                context.stream, parts, tiles, rows, predictions, static_cast<float*>(a.logProb), static_cast<float*>(a.lse),
                static_cast<float*>(a.entropy));
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
  const int64_t stride = vocabularyStride<T>(a.vocab);
  if (!a.logits) {
    multiply<T, LogitsOrder>(context, logitsProduct<T>(context, a.x, a.cols, a.head, a.vocab, a.sources + first, rows),
                LogitGradientEpilogue<T>{gradient, dz, stride});
    return;
  }
  RLHF_LAUNCH(logitGradientKernel<T>, logitGrid(rows, a.vocab), dim3(kVocabularyThreads), 0, context.stream, gradient,
              static_cast<const float*>(a.logits) + first * a.vocab, dz, stride, a.vocab);
}

template <class T>
void backward(OpContext& context, const TokenLogProbBackward& a) {
  T* const dz = reinterpret_cast<T*>(behindRows<T>(context, std::min(a.count, kChunkRows<T>), a.cols));
  for (int64_t first = 0; first < a.count; first += kChunkRows<T>) {
    const int64_t rows = std::min(kChunkRows<T>, a.count - first);
    chunkGradient<T>(context, a, first, rows, dz);
    addLogitGradients(context, a, first, rows, dz);
  }
}

template <class T>
size_t scratchBytes(int64_t rows, int64_t cols, int64_t vocab) {
  const int64_t chunk = std::min(rows, kChunkRows<T>);
  const size_t parts = alignedBytes(chunk * tilesOf(vocab, TileFor<T>::kCols), sizeof(SoftmaxPart));
  const size_t gradients = alignedBytes(chunk * vocabularyStride<T>(vocab), sizeof(T));
  return alignedBytes(chunk * cols, sizeof(T)) + std::max(parts, gradients);
}

}  // namespace

size_t tokenLogProbScratchBytes(int64_t rows, int64_t cols, int64_t vocab) {
  if (vocab == 0) return 0;
  return std::max(scratchBytes<float>(rows, cols, vocab), scratchBytes<bf16>(rows, cols, vocab));
}

void tokenLogProbForward(OpContext& context, const TokenLogProbForward& a) {
  requireWeightType(a.head.type, a.head.compute, a.type, "tokenLogProbForward");
  requireScratch(context, tokenLogProbScratchBytes(a.count, a.cols, a.vocab), "tokenLogProbForward");
  dispatchType(a.type, "tokenLogProbForward", [&](auto zero) { forward<decltype(zero)>(context, a); });
}

void tokenLogProbBackward(OpContext& context, const TokenLogProbBackward& a) {
  requireWeightType(a.head.type, a.head.compute, a.type, "tokenLogProbBackward");
  requireScratch(context, tokenLogProbScratchBytes(a.count, a.cols, a.vocab), "tokenLogProbBackward");
  dispatchType(a.type, "tokenLogProbBackward", [&](auto zero) { backward<decltype(zero)>(context, a); });
}

}  // namespace rlhf::cuda
