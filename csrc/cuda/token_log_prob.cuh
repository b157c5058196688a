#pragma once
// What the head's product hands its logits to: statistics of rows, or the gradients of logits.

#include "cuda/matmul.cuh"
#include "cuda/prim/warp.cuh"
#include "cuda/row_parts.cuh"

namespace rlhf::cuda {

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

/// How many columns behind the thread's first one that of a slot is: known to the compiler.
template <class Tile>
RLHF_DEVICE int colBehindFirst(int slot) {
  return Tile::colOf(slot) - Tile::colOf(0);
}

struct Statistics {
  SoftmaxPart* parts;          // [chunk, column tiles]
  const int32_t* predictions;  // of this chunk
  const int32_t* tokens;
  float* logits;  // [chunk, V] or null
  float inverseTemperature;
};

/// Leaves the softmax part of every row over the block's columns in parts[row, column tile], and the logits where they are kept.
template <class Tile>
struct StatisticsEpilogue : Statistics {
  using Shared = RowParts<Tile, SoftmaxPart>;

  // Stands for columns beside the vocabulary: below all logits, and finite, so that times e^z = 0 it is 0.
  static constexpr float kBeside = -1e30f;

  /// Turns the sums of a row that this warp holds into logits; their part, in every lane of the row.
  RLHF_DEVICE SoftmaxPart partOfRow(Tile& tile, int rowSlot, int64_t row, int64_t firstCol, int64_t rows, int64_t cols) const {
    const int64_t first = firstCol + Tile::colOf(0), token = row < rows ? tokens[predictions[row]] : -1;
    const int columns = static_cast<int>(cols - first);
    const int target = token < cols ? static_cast<int>(token - first) : -1;  // what is no token is in no part
    SoftmaxPart part{kBeside, 0.0f, 0.0f, -INFINITY};
#pragma unroll
    for (int slot = 0; slot < Tile::kColSlots; ++slot) {
      float& z = slotSum(tile, rowSlot, slot);
      z = colBehindFirst<Tile>(slot) < columns ? z * inverseTemperature : kBeside;
      part.max = fmaxf(part.max, z);
      if (colBehindFirst<Tile>(slot) == target) part.target = z;
    }
    if (logits && row < rows) keep(tile, rowSlot, logits + row * cols + first, columns);
    part.max = groupMax<Tile::kLanesPerRow>(part.max);
#pragma unroll
    for (int slot = 0; slot < Tile::kColSlots; ++slot) {
      const float shifted = slotSum(tile, rowSlot, slot) - part.max, e = expFor<typename Tile::Element>(shifted);
      part.sum += e;
      part.weighted += e * shifted;
    }
    part.sum = groupSum<Tile::kLanesPerRow>(part.sum);
    part.weighted = groupSum<Tile::kLanesPerRow>(part.weighted);
    part.target = groupMax<Tile::kLanesPerRow>(part.target);
    return part.max == kBeside ? emptyPart() : part;
  }

  /// Writes a row's logits, the thread's first one at `kept`.
  static RLHF_DEVICE void keep(Tile& tile, int rowSlot, float* kept, int columns) {
#pragma unroll
    for (int slot = 0; slot < Tile::kColSlots; ++slot)
      if (colBehindFirst<Tile>(slot) < columns) kept[colBehindFirst<Tile>(slot)] = slotSum(tile, rowSlot, slot);
  }

  RLHF_DEVICE void operator()(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t cols, Shared& shared) const {
    forEachRowPart<Tile, SoftmaxPart>(
        shared, firstRow, rows, [&](int slot, int64_t row) { return partOfRow(tile, slot, row, firstCol, rows, cols); }, join,
        [&](int64_t row, const SoftmaxPart& part) { parts[row * tilesOf(cols, Tile::kCols) + firstCol / Tile::kCols] = part; });
  }
};

/// dz of the logits from the gradients of their rows' outputs:
/// factor · [dLogProb·(1_token − p) + dLse·p − dEntropy·p·(log p + entropy)].
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

  /// A row's numbers: dz = p·(slope − entropySlope·log p), and atToken more at its token.
  struct Row {
    int token;
    float lse, atToken, slope, entropySlope;
  };

  // Two kernels work these out, of logits that were kept and of those computed again, and shall come to the same bits: nothing is left to
  // the compiler to fuse.
  RLHF_DEVICE Row ofRow(int64_t row) const {
    const int32_t t = predictions[row];
    const float ofLogProb = dLogProb ? roundedProduct(dLogProb[t], factor) : 0.0f, ofLse = dLse ? roundedProduct(dLse[t], factor) : 0.0f;
    const float ofEntropy = dEntropy ? roundedProduct(dEntropy[t], factor) : 0.0f, slope = ofLse - ofLogProb;
    return {tokens[t], lse[t], ofLogProb, dEntropy ? fmaf(-ofEntropy, entropy[t], slope) : slope, ofEntropy};
  }

  /// T is the type of the head's product.
  template <class T>
  static RLHF_DEVICE float at(const Row& row, bool isToken, float z) {
    const float logProbability = z - row.lse, probability = expFor<T>(logProbability);
    // Where the probability is 0 its logarithm may be −∞, and their product is 0.
    const float slope = probability > 0 ? fmaf(-row.entropySlope, logProbability, row.slope) : row.slope;
    return fmaf(probability, slope, isToken ? row.atToken : 0.0f);
  }
};

/// Turns the head's product into dz[chunk, V].
template <class T>
struct LogitGradientEpilogue {
  LogitGradient gradient;
  T* dz;
  int64_t stride;

  template <class Tile>
  RLHF_DEVICE void onSums(Tile& tile, int64_t firstRow, int64_t firstCol, int64_t rows, int64_t) const {
#pragma unroll
    for (int rowSlot = 0; rowSlot < Tile::kRowSlots; ++rowSlot) {
      const int64_t at = firstRow + Tile::rowOf(rowSlot);
      if (at >= rows) continue;
      const LogitGradient::Row row = gradient.ofRow(at);
      const int target = static_cast<int>(row.token - (firstCol + Tile::colOf(0)));
#pragma unroll
      for (int colSlot = 0; colSlot < Tile::kColSlots; ++colSlot) {
        float& sum = slotSum(tile, rowSlot, colSlot);
        // Rounded as the logit that a forward pass keeps is, so that those computed again give the same gradients.
        const float z = roundedProduct(sum, gradient.inverseTemperature);
        sum = LogitGradient::at<T>(row, colBehindFirst<Tile>(colSlot) == target, z);
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
