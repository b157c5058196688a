#pragma once
#include <algorithm>

#include "core/error.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/vector_loops.h"
#include "ops/linear.h"

// What the ops over the vocabulary share. They go through the predictions in blocks of cpu::kPredictionsPerBlock.

namespace rlhf::RLHF_ISA {

inline const float* floats(const void* data) { return static_cast<const float*>(data); }
inline float* floats(void* data) { return static_cast<float*>(data); }

/// The hidden rows that a block of predictions reads, one after the other, and the head that is applied to them.
struct PredictionBlock {
  int64_t count, cols, vocab;
  const int32_t* sources;  // [count]
  const float* hidden;     // [count, cols] gathered
  LinearWeight head;

  PredictionBlock(const void* x, int64_t width, const LinearWeight& weight, int64_t vocabulary, const int32_t* rows,
                  int64_t predictions, SharedScratch& scratch);

  /// Whether row is the first in this block that its hidden row predicts.
  bool leads(int64_t row) const { return row == 0 || sources[row] != sources[row - 1]; }

  /// logits·temperature = hidden·Wᵀ for a range of the vocabulary that begins at a strip's boundary.
  Product logits(int64_t vocabBegin, int64_t vocabCount) const;
};

/// Gradients of a block's logits over a range of the vocabulary: row i at data + i · stride.
struct LogitGradients {
  float* data;
  int64_t stride, vocabBegin, vocabCount;
};

/// dx[source] += dz·W, and dWeight += dzᵀ·x unless it is null. Uses dz up.
void addLogitGradients(OpContext& context, SharedScratch scratch, const PredictionBlock& block, const LogitGradients& dz,
                       void* dx, void* dWeight);

inline void scale(float* values, int64_t count, float factor) {
  if (factor == 1) return;
  forEachVector(count, [&](int64_t i, auto lanes) { lanes.store(values + i, lanes.load(values + i) * factor); });
}

/// Calls body(begin, count) for blocks of predictions.
template <class Body>
void forEachBlock(int64_t count, Body&& body) {
  for (int64_t begin = 0; begin < count; begin += cpu::kPredictionsPerBlock)
    body(begin, std::min(cpu::kPredictionsPerBlock, count - begin));
}

/// Predictions and sources index rows, so all are checked before anything is read.
template <class Arguments>
void requirePredictionsInRange(const Arguments& a, const char* op) {
  for (int64_t p = 0; p < a.count; ++p) {
    requireIndex(op, "predictions", p, a.predictions[p], a.rows);
    requireIndex(op, "sources", p, a.sources[p], a.rows);
    if (p > 0 && a.sources[p] < a.sources[p - 1])
      throw Error(code::kArgument, format("%s: sources[%lld] is %d, expected at least the one before, %d", op,
                                          static_cast<long long>(p), a.sources[p], a.sources[p - 1]));
  }
}

}  // namespace rlhf::RLHF_ISA
