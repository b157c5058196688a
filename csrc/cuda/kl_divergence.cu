// The divergence of two next-token distributions. The policy's logits of a chunk of rows stand in scratch memory (or are those that
// were kept); the reference's head meets them in the epilogue of its product, which leaves a sum per row and vocabulary tile, or dz.

#include "cuda/kl_divergence.cuh"

#include <algorithm>
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/vocabulary.cuh"

namespace rlhf::cuda {
namespace {

// Rows whose logits are in scratch memory at once: fewer than of token log-probabilities, since gradients may stand beside them.
constexpr int64_t kChunkRows = 512;

/// A warp per row adds its parts up, in an order that the number of tiles alone decides.
__global__ void __launch_bounds__(kVocabularyThreads)
    addPartsKernel(const float* parts, int64_t columnTiles, int64_t rows, const int32_t* predictions, float* kl) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kVocabularyThreads + threadIdx.x) / 32;
  if (row >= rows) return;
  double sum = 0;
  for (int64_t tile = lane; tile < columnTiles; tile += 32) sum += parts[row * columnTiles + tile];
  sum = groupSum(sum);
  if (lane == 0) kl[predictions[row]] = static_cast<float>(sum);
}

/// The policy's logits of a chunk, and how far apart their rows are.
struct PolicyLogits {
  const float* data;
  int64_t stride;
};

/// Scratch memory of a chunk: hidden rows of either model, logits of the policy's, parts or gradients.
template <class T, class Arguments>
struct ChunkMemory {
  float* logits;
  void* behindLogits;

  ChunkMemory(OpContext& context, const Arguments& a) {
    const int64_t chunk = std::min(a.count, kChunkRows);
    logits = reinterpret_cast<float*>(behindRows<T>(context, chunk, std::max(a.cols, a.refCols)));
    behindLogits = reinterpret_cast<char*>(logits) + alignedBytes(chunk * vocabularyStride<T>(a.vocab), sizeof(float));
  }
};

/// Those that were kept, or those of the policy's head's product, in `work`.
template <class T, class Arguments>
PolicyLogits policyLogits(OpContext& context, const Arguments& a, int64_t first, int64_t rows, float* work) {
  if (a.logits) return {static_cast<const float*>(a.logits) + first * a.vocab, a.vocab};
  const int64_t stride = vocabularyStride<T>(a.vocab);
  multiply<T, LogitsOrder>(context, logitsProduct<T>(context, a.x, a.cols, a.head, a.vocab, a.sources + first, rows),
              LogitsEpilogue{work, stride, static_cast<float>(1 / a.temperature)});
  return {work, stride};
}

template <class T, class Arguments>
MatmulArguments referenceProduct(OpContext& context, const Arguments& a, int64_t first, int64_t rows) {
  return logitsProduct<T>(context, a.refX, a.refCols, a.refHead, a.vocab, a.sources + first, rows);
}

template <class Arguments>
Distributions distributionsOf(const Arguments& a, int64_t first, const PolicyLogits& logits) {
  return {a.predictions + first,
          logits.data,
          logits.stride,
          static_cast<const float*>(a.lse),
          static_cast<const float*>(a.refLse),
          static_cast<float>(1 / a.temperature),
          a.direction};
}

template <class T>
void forward(OpContext& context, const KlDivergenceForward& a) {
  const ChunkMemory<T, KlDivergenceForward> memory(context, a);
  auto* const parts = static_cast<float*>(memory.behindLogits);
  for (int64_t first = 0; first < a.count; first += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, a.count - first);
    const PolicyLogits logits = policyLogits<T>(context, a, first, rows, memory.logits);
    const int64_t tiles =
        launchRowParts<T, DivergenceEpilogue>(context, referenceProduct<T>(context, a, first, rows), Divergence{distributionsOf(a, first, logits), parts});
    constexpr int64_t kRowsPerBlock = kVocabularyThreads / 32;
    RLHF_LAUNCH(addPartsKernel, dim3(static_cast<uint32_t>((rows + kRowsPerBlock - 1) / kRowsPerBlock)), dim3(kVocabularyThreads), 0,
                context.stream, parts, tiles, rows, a.predictions + first, static_cast<float*>(a.kl));
  }
}

template <class T>
void backward(OpContext& context, const KlDivergenceBackward& a) {
  const ChunkMemory<T, KlDivergenceBackward> memory(context, a);
  T* dz;
  if constexpr (std::is_same_v<T, float>) {
    dz = memory.logits;  // a thread overwrites the logit that it read
  } else {
    dz = static_cast<T*>(memory.behindLogits);
  }
  for (int64_t first = 0; first < a.count; first += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, a.count - first);
    const PolicyLogits logits = policyLogits<T>(context, a, first, rows, memory.logits);
    multiply<T, LogitsOrder>(context, referenceProduct<T>(context, a, first, rows),
                KlGradientEpilogue<T>{distributionsOf(a, first, logits), static_cast<const float*>(a.kl), static_cast<const float*>(a.dKl),
                                      dz, vocabularyStride<T>(a.vocab), static_cast<float>(a.lossScale / a.temperature)});
    addLogitGradients(context, a, first, rows, dz);
  }
}

template <class T>
size_t scratchBytes(int64_t rows, int64_t cols, int64_t vocab) {
  const int64_t chunk = std::min(rows, kChunkRows), stride = vocabularyStride<T>(vocab);
  const size_t parts = alignedBytes(chunk * tilesOf(vocab, TileFor<T>::kCols), sizeof(float));
  const size_t gradients = std::is_same_v<T, float> ? 0 : alignedBytes(chunk * stride, sizeof(T));
  return alignedBytes(chunk * cols, sizeof(T)) + alignedBytes(chunk * stride, sizeof(float)) + std::max(parts, gradients);
}

template <class Arguments>
void requireWhatItNeeds(const OpContext& context, const Arguments& a, const char* op) {
  requireWeightType(a.head.type, a.head.compute, a.type, op);
  requireWeightType(a.refHead.type, a.refHead.compute, a.type, op);
  requireScratch(context, klDivergenceScratchBytes(a.count, std::max(a.cols, a.refCols), a.vocab), op);
}

}  // namespace

size_t klDivergenceScratchBytes(int64_t rows, int64_t cols, int64_t vocab) {
  if (vocab == 0) return 0;
  return std::max(scratchBytes<float>(rows, cols, vocab), scratchBytes<bf16>(rows, cols, vocab));
}

void klDivergenceForward(OpContext& context, const KlDivergenceForward& a) {
  requireWhatItNeeds(context, a, "klDivergenceForward");
  dispatchType(a.type, "klDivergenceForward", [&](auto zero) { forward<decltype(zero)>(context, a); });
}

void klDivergenceBackward(OpContext& context, const KlDivergenceBackward& a) {
  requireWhatItNeeds(context, a, "klDivergenceBackward");
  dispatchType(a.type, "klDivergenceBackward", [&](auto zero) { backward<decltype(zero)>(context, a); });
}

}  // namespace rlhf::cuda
