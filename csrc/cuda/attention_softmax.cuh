#pragma once
#include "cuda/prim/warp.cuh"

namespace rlhf::cuda {

inline constexpr float kLn2 = 0.6931471805599453f;

/// The softmax of the thread's rows so far, in powers of two: maxima of the scores times `factor`, and this thread's share of the sums.
template <class Attention>
struct RunningSoftmax {
  float factor;  // > 0
  float maximum[Attention::kRowSlots], sum[Attention::kRowSlots];

  explicit RLHF_DEVICE RunningSoftmax(float scoreFactor) : factor(scoreFactor) {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) maximum[row] = -INFINITY, sum[row] = 0.0f;
  }

  /// Scores become weights relative to the new maxima; shrink(row, factor) is told what a row's sums from before are to be multiplied by.
  template <class Shrink>
  RLHF_DEVICE void weigh(typename Attention::Scores& scores, Shrink&& shrink) {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) {
      float highest = -INFINITY;
#pragma unroll
      for (int col = 0; col < Attention::kColSlots; ++col) highest = fmaxf(highest, Attention::score(scores, row, col));
      highest = fmaxf(maximum[row], groupMax<Attention::kLanesPerRow>(highest) * factor);
      const float origin = highest == -INFINITY ? 0.0f : highest;  // a row that sees no key yet: −∞ − (−∞) is no number
      const float correction = exp2Approx(maximum[row] - origin);
      sum[row] *= correction;
      shrink(row, correction);
      maximum[row] = highest;
#pragma unroll
      for (int col = 0; col < Attention::kColSlots; ++col) {
        float& score = Attention::score(scores, row, col);
        score = exp2Approx(score * factor - origin);
        sum[row] += score;
      }
    }
  }

  /// A row's sums of values times the factor.
  static RLHF_DEVICE void shrink(typename Attention::Sums& output, int row, float factor) {
    if (ballot(factor != 1.0f) == 0) return;  // in most tiles: maxima are found early
#pragma unroll
    for (int dim = 0; dim < Attention::kDimSlots; ++dim) Attention::sum(output, row, dim) *= factor;
  }

  /// Completes the sums, and writes log Σ exp of the rows that targetRow(row) names, at one head; negative ones are left out.
  template <class TargetRow>
  RLHF_DEVICE void finish(float* lse, int heads, int head, TargetRow&& targetRow) {
#pragma unroll
    for (int row = 0; row < Attention::kRowSlots; ++row) {
      sum[row] = groupSum<Attention::kLanesPerRow>(sum[row]);
      const int64_t target = targetRow(Attention::rowOf(row));
      if (target >= 0 && threadIdx.x % Attention::kLanesPerRow == 0)
        lse[target * heads + head] = kLn2 * (maximum[row] + log2f(sum[row]));
    }
  }
};

}  // namespace rlhf::cuda
