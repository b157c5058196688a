// The divergence of two next-token distributions. The policy's logits of a chunk of rows stand in scratch memory (or are those that
// were kept); the reference's head meets them in the epilogue of its product, which leaves a sum per row and vocabulary tile, or dz.

#include <algorithm>
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/warp.cuh"
#include "cuda/vocabulary.cuh"

namespace rlhf::cuda {
namespace {

// Rows whose logits are in scratch memory at once: half of those of token log-probabilities, since gradients may stand beside them.
constexpr int64_t kChunkRows = 512;
constexpr size_t kAlignment = 256;

size_t alignedBytes(int64_t count, size_t elementBytes) {
  return (static_cast<size_t>(count) * elementBytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Both distributions at one logit.
struct LogProbs {
  float policy, reference;
};

/// What the epilogues read, and the element types of neither model.
struct Distributions {
  const int32_t* predictions;  // of this chunk
  const float* policyLogits;   // of this chunk, [rows, V]
  const float* lse;
  const float* refLse;
  float inverseTemperature;
  KlDirection direction;

  /// `sum` is the reference's product, before the temperature.
  RLHF_DEVICE LogProbs at(int64_t row, int64_t col, int64_t vocab, float sum) const {
    const int32_t t = predictions[row];
    return {policyLogits[row * vocab + col] - lse[t], sum * inverseTemperature - refLse[t]};
  }
};

/// a·(log a − log b) − a + b. With d = log a − log b it is a·(d − 1 + e^−d); near d = 0, where that cancels, its series is exact to 2e-8.
RLHF_DEVICE float divergenceTerm(float logA, float logB) {
  const float d = logA - logB, a = expf(logA);
  if (fabsf(d) >= 0.25f) return a * d - a + expf(logB);
  float series = 1.0f / 720 - d * (1.0f / 5040);
  series = 1.0f / 120 - d * series;
  series = 1.0f / 24 - d * series;
  series = 1.0f / 6 - d * series;
  series = 0.5f - d * series;
  return a * (d * d * series);
}

/// Leaves the divergence of every row over the block's columns in parts[row, column tile].
template <class Tile>
struct DivergenceEpilogue {
  struct Shared {
    float part[Tile::kWarpsPerRow][Tile::kRows];
  };

  Distributions distributions;
  float* parts;
  int64_t columnTiles;

  RLHF_DEVICE void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols, Shared& shared) const {
    const bool reverse = distributions.direction == KlDirection::Reverse;
#pragma unroll
    for (int rowSlot = 0; rowSlot < Tile::kRowSlots; ++rowSlot) {
      const int64_t row = firstRow + Tile::rowOf(rowSlot);
      float part = 0;
#pragma unroll
      for (int colSlot = 0; colSlot < Tile::kColSlots; ++colSlot) {
        const int64_t col = firstCol + Tile::colOf(colSlot);
        if (row >= rows || col >= cols) continue;
        const LogProbs log = distributions.at(row, col, cols, slotSum(tile, rowSlot, colSlot));
        part += reverse ? divergenceTerm(log.policy, log.reference) : divergenceTerm(log.reference, log.policy);
      }
      part = groupSum<Tile::kLanesPerRow>(part);
      if (threadIdx.x % Tile::kLanesPerRow == 0) shared.part[Tile::warpInRow()][Tile::rowOf(rowSlot)] = part;
    }
    syncThreads();
    const int row = static_cast<int>(threadIdx.x);
    if (row >= Tile::kRows || firstRow + row >= rows) return;
    float part = 0;
    for (int warp = 0; warp < Tile::kWarpsPerRow; ++warp) part += shared.part[warp][row];
    parts[(firstRow + row) * columnTiles + firstCol / Tile::kCols] = part;
  }
};

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

/// Turns the reference's product into dz[chunk, V], which may be the policy's logits.
template <class T>
struct KlGradientEpilogue {
  using Shared = NoShared;

  Distributions distributions;
  const float* kl;
  const float* dKl;
  T* dz;
  float factor;  // lossScale / temperature

  template <class Tile>
  RLHF_DEVICE void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols, Shared&) const {
    forEachElement(tile, firstRow, firstCol, rows, cols, [&](int64_t row, int64_t col, float sum) {
      const int32_t t = distributions.predictions[row];
      const LogProbs log = distributions.at(row, col, cols, sum);
      const float policy = expf(log.policy);
      const float slope = distributions.direction == KlDirection::Reverse ? policy * (log.policy - log.reference - kl[t])
                                                                          : policy - expf(log.reference);
      dz[row * cols + col] = fromFloat<T>(dKl[t] * slope * factor);
    });
  }
};

/// The policy's logits of a chunk: those that were kept, or those of its head's product, in `work`.
template <class T, class Arguments>
const float* policyLogits(OpContext& context, const Arguments& a, int64_t first, int64_t rows, float* work) {
  if (a.logits) return static_cast<const float*>(a.logits) + first * a.vocab;
  launchMatmul<TileFor<T>>(context, logitsProduct<T>(a.x, a.cols, a.head, a.vocab, a.sources + first, rows),
                           StoreEpilogue<float>{work, a.vocab, static_cast<float>(1 / a.temperature)});
  return work;
}

template <class T, class Arguments, class Epilogue>
void launchReference(OpContext& context, const Arguments& a, int64_t first, int64_t rows, const Epilogue& epilogue) {
  launchMatmul<TileFor<T>>(context, logitsProduct<T>(a.refX, a.refCols, a.refHead, a.vocab, a.sources + first, rows), epilogue);
}

template <class Arguments>
Distributions distributionsOf(const Arguments& a, int64_t first, const float* logits) {
  return {a.predictions + first, logits, static_cast<const float*>(a.lse), static_cast<const float*>(a.refLse),
          static_cast<float>(1 / a.temperature), a.direction};
}

/// The scratch memory behind the logits of a chunk.
void* behindLogits(OpContext& context, int64_t count, int64_t vocab) {
  return static_cast<char*>(context.scratch) + alignedBytes(std::min(count, kChunkRows) * vocab, sizeof(float));
}

template <class T>
void forward(OpContext& context, const KlDivergenceForward& a) {
  using Tile = TileFor<T>;
  const int64_t tiles = columnTiles<Tile>(a.vocab);
  auto* const work = static_cast<float*>(context.scratch);
  auto* const parts = static_cast<float*>(behindLogits(context, a.count, a.vocab));
  for (int64_t first = 0; first < a.count; first += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, a.count - first);
    const float* logits = policyLogits<T>(context, a, first, rows, work);
    launchReference<T>(context, a, first, rows, DivergenceEpilogue<Tile>{distributionsOf(a, first, logits), parts, tiles});
    constexpr int64_t kRowsPerBlock = kVocabularyThreads / 32;
    RLHF_LAUNCH(addPartsKernel, dim3(static_cast<uint32_t>((rows + kRowsPerBlock - 1) / kRowsPerBlock)), dim3(kVocabularyThreads), 0,
                context.stream, parts, tiles, rows, a.predictions + first, static_cast<float*>(a.kl));
  }
}

template <class T>
void backward(OpContext& context, const KlDivergenceBackward& a) {
  auto* const work = static_cast<float*>(context.scratch);
  T* dz;
  if constexpr (std::is_same_v<T, float>) {
    dz = work;  // a thread overwrites the logit that it read
  } else {
    dz = static_cast<T*>(behindLogits(context, a.count, a.vocab));
  }
  for (int64_t first = 0; first < a.count; first += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, a.count - first);
    const float* logits = policyLogits<T>(context, a, first, rows, work);
    launchReference<T>(context, a, first, rows,
                       KlGradientEpilogue<T>{distributionsOf(a, first, logits), static_cast<const float*>(a.kl),
                                             static_cast<const float*>(a.dKl), dz, static_cast<float>(a.lossScale / a.temperature)});
    addLogitGradients(context, a, first, rows, dz);
  }
}

template <class Arguments>
void requireWhatItNeeds(const OpContext& context, const Arguments& a, const char* op) {
  requireWeightType(a.head.type, a.head.compute, a.type, op);
  requireWeightType(a.refHead.type, a.refHead.compute, a.type, op);
  requireScratch(context, klDivergenceScratchBytes(a.count, a.vocab), op);
}

}  // namespace

size_t klDivergenceScratchBytes(int64_t rows, int64_t vocab) {
  const int64_t chunk = std::min(rows, kChunkRows);
  const size_t parts = alignedBytes(chunk * columnTiles<FmaTile>(vocab), sizeof(float));
  const size_t gradients = alignedBytes(chunk * vocab, sizeof(uint16_t));
  return alignedBytes(chunk * vocab, sizeof(float)) + std::max(parts, gradients);
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
