#pragma once
// What the reference's product hands its logits to, where the policy's are there already: the divergence of rows, or its gradients.

#include "cuda/matmul.cuh"
#include "cuda/prim/warp.cuh"
#include "cuda/row_parts.cuh"
#include "ops/kl_divergence.h"

namespace rlhf::cuda {

/// Both distributions at one logit.
struct LogProbs {
  float policy, reference;
};

/// What the epilogues read, and the element types of neither model.
struct Distributions {
  const int32_t* predictions;  // of this chunk
  const float* policyLogits;   // of this chunk, [rows, V]
  int64_t logitsStride;
  const float* lse;
  const float* refLse;
  float inverseTemperature;
  KlDirection direction;

  /// A row's own numbers.
  struct Row {
    const float* policyLogits;
    float lse, refLse;
  };

  RLHF_DEVICE Row ofRow(int64_t row) const {
    const int32_t t = predictions[row];
    return {policyLogits + row * logitsStride, lse[t], refLse[t]};
  }

  /// `sum` is the reference's product, before the temperature. Its logit is rounded as the policy's were: of equal models they are equal.
  RLHF_DEVICE LogProbs at(const Row& row, int64_t col, float sum) const {
    return {row.policyLogits[col] - row.lse, roundedProduct(sum, inverseTemperature) - row.refLse};
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

/// Stores the policy's logits.
struct LogitsEpilogue {
  float* logits;
  int64_t stride;
  float inverseTemperature;

  bool takesPacks(int64_t) const { return true; }

  /// Columns beside the vocabulary are written too, where it ends within a pack: a row is as long as its stride.
  template <int kCount>
  RLHF_DEVICE void storePack(int64_t row, int64_t col, Pack<float, kCount> sum) const {
#pragma unroll
    for (float& each : sum.item) each *= inverseTemperature;
    writePack(logits + row * stride + col, sum);
  }
};

struct Divergence {
  Distributions distributions;
  float* parts;  // [chunk, column tiles]
};

/// Leaves the divergence of every row over the block's columns in parts[row, column tile].
template <class Tile>
struct DivergenceEpilogue : Divergence {
  using Shared = RowParts<Tile, float>;

  /// The part of a row that this warp holds, in every lane of the row.
  RLHF_DEVICE float partOfRow(Tile& tile, int rowSlot, int64_t row, int64_t firstCol, int64_t rows, int64_t cols) const {
    float part = 0;
    if (row < rows) {
      const bool reverse = distributions.direction == KlDirection::Reverse;
      const Distributions::Row own = distributions.ofRow(row);
#pragma unroll
      for (int colSlot = 0; colSlot < Tile::kColSlots; ++colSlot) {
        const int64_t col = firstCol + Tile::colOf(colSlot);
        if (col >= cols) continue;
        const LogProbs log = distributions.at(own, col, slotSum(tile, rowSlot, colSlot));
        part += reverse ? divergenceTerm(log.policy, log.reference) : divergenceTerm(log.reference, log.policy);
      }
    }
    return groupSum<Tile::kLanesPerRow>(part);
  }

  RLHF_DEVICE void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols, Shared& shared) const {
    forEachRowPart<Tile, float>(
        shared, firstRow, rows, [&](int slot, int64_t row) { return partOfRow(tile, slot, row, firstCol, rows, cols); },
        [](float a, float b) { return a + b; },
        [&](int64_t row, float part) { parts[row * tilesOf(cols, Tile::kCols) + firstCol / Tile::kCols] = part; });
  }
};

/// Turns the reference's product into dz[chunk, V], which may be the policy's logits where both have one stride.
template <class T>
struct KlGradientEpilogue {
  Distributions distributions;
  const float* kl;
  const float* dKl;
  T* dz;
  int64_t stride;
  float factor;  // lossScale / temperature

  template <class Tile>
  RLHF_DEVICE void onSums(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols) const {
    const bool reverse = distributions.direction == KlDirection::Reverse;
#pragma unroll
    for (int rowSlot = 0; rowSlot < Tile::kRowSlots; ++rowSlot) {
      const int64_t row = firstRow + Tile::rowOf(rowSlot);
      if (row >= rows) continue;
      const Distributions::Row own = distributions.ofRow(row);
      const int32_t t = distributions.predictions[row];
      const float divergence = kl[t], scale = dKl[t] * factor;
#pragma unroll
      for (int colSlot = 0; colSlot < Tile::kColSlots; ++colSlot) {
        const int64_t col = firstCol + Tile::colOf(colSlot);
        if (col >= cols) continue;
        float& sum = slotSum(tile, rowSlot, colSlot);
        const LogProbs log = distributions.at(own, col, sum);
        const float policy = expf(log.policy);
        sum = scale * (reverse ? policy * (log.policy - log.reference - divergence) : policy - expf(log.reference));
      }
    }
  }

  bool takesPacks(int64_t) const { return true; }

  /// Columns beside the vocabulary are written too, where it ends within a pack: a row is as long as its stride.
  template <int kCount>
  RLHF_DEVICE void storePack(int64_t row, int64_t col, const Pack<float, kCount>& values) const {
    writePack(dz + row * stride + col, values);
  }
};

}  // namespace rlhf::cuda
