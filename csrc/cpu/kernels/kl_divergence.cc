#include <algorithm>
#include <cmath>

#include "cpu/kernels/predictions.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_math.h"

// Both directions go through the vocabulary in blocks of kVocabPerBlock: the policy's logits of a block are written to scratch
// memory (or are those that were kept), and the reference's meet them strip by strip while they are in the first-level cache.

namespace rlhf::RLHF_ISA {
namespace {

using cpu::kVocabPerBlock;
static_assert(kVocabPerBlock % kStripCols == 0, "a strip's sum covers the same columns whatever the block");

/// Σ a·(log a − log b) − a + b over a strip. With d = log a − log b a term is a·(d − 1 + e^−d); near d = 0, where that cancels, its
/// series is exact to 2e-8.
float divergence(const float* z, float lse, const float* refZ, float refLse, int64_t count, KlDirection direction) {
  const bool reverse = direction == KlDirection::Reverse;
  return sumVectors(count, [&](int64_t i, auto lanes) {
    const Vec logPolicy = lanes.load(z + i) - lse, logReference = lanes.load(refZ + i) - refLse;
    const Vec logA = reverse ? logPolicy : logReference, logB = reverse ? logReference : logPolicy;
    const Vec d = logA - logB, a = exp(logA);
    Vec series = set1(1.0f / 720) - d * (1.0f / 5040);
    series = set1(1.0f / 120) - d * series;
    series = set1(1.0f / 24) - d * series;
    series = set1(1.0f / 6) - d * series;
    series = set1(0.5f) - d * series;
    return abs(d) < 0.25f ? a * (d * d * series) : a * d - a + exp(logB);
  });
}

/// What both passes do for one block of predictions.
template <class Arguments>
class KlBlock {
 public:
  KlBlock(OpContext& context, const Arguments& a, int64_t begin, int64_t count, SharedScratch& scratch)
      : context_(context), a_(a), begin_(begin), inverseTemperature_(static_cast<float>(1 / a.temperature)),
        policy_(a.x, a.cols, a.head, a.vocab, a.sources + begin, count, scratch),
        reference_(a.refX, a.refCols, a.refHead, a.vocab, a.sources + begin, count, scratch),
        block_(scratch.take(count * std::min(a.vocab, kVocabPerBlock))) {}

 protected:
  int64_t token(int64_t row) const { return a_.predictions[begin_ + row]; }
  float lse(int64_t row) const { return floats(a_.lse)[token(row)]; }
  float refLse(int64_t row) const { return floats(a_.refLse)[token(row)]; }

  /// The policy's logits in a range of the vocabulary, row i at data + i · stride.
  struct Logits {
    const float* data;
    int64_t stride;
  };

  Logits policyLogits(SharedScratch scratch, int64_t vocabBegin, int64_t vocabCount) {
    if (a_.logits) return {floats(a_.logits) + begin_ * a_.vocab + vocabBegin, a_.vocab};
    auto consume = [&](const Strip& strip) {
      for (int64_t i = 0; i < strip.rows; ++i) {
        float* const z = block_ + (strip.row + i) * vocabCount + strip.col;
        std::copy_n(strip.values + i * strip.stride, strip.cols, z);
        scale(z, strip.cols, inverseTemperature_);
      }
    };
    gemm(context_, scratch, policy_.logits(vocabBegin, vocabCount), consume);
    return {block_, vocabCount};
  }

  /// Calls body(row, column of the range, the reference's logits, how many) for strips of the range.
  template <class Body>
  void forReferenceLogits(SharedScratch scratch, int64_t vocabBegin, int64_t vocabCount, Body&& body) {
    auto consume = [&](const Strip& strip) {
      for (int64_t i = 0; i < strip.rows; ++i) {
        float* const refZ = strip.values + i * strip.stride;
        scale(refZ, strip.cols, inverseTemperature_);
        body(strip.row + i, strip.col, refZ, strip.cols);
      }
    };
    gemm(context_, scratch, reference_.logits(vocabBegin, vocabCount), consume, Columns::FixedCuts);
  }

  template <class Body>
  void forEachVocabBlock(Body&& body) {
    for (int64_t vocabBegin = 0; vocabBegin < a_.vocab; vocabBegin += kVocabPerBlock)
      body(vocabBegin, std::min(kVocabPerBlock, a_.vocab - vocabBegin));
  }

  OpContext& context_;
  const Arguments& a_;
  int64_t begin_;
  float inverseTemperature_;
  PredictionBlock policy_, reference_;
  float* block_;  // [count, vocabCount]: the policy's logits, and then their gradients
};

class ForwardBlock : KlBlock<KlDivergenceForward> {
 public:
  ForwardBlock(OpContext& context, const KlDivergenceForward& f, int64_t begin, int64_t count, SharedScratch scratch)
      : KlBlock(context, f, begin, count, scratch), strips_(ceilDivide(f.vocab, kStripCols)),
        sums_(scratch.take(count * strips_)), scratch_(scratch) {}

  void run() {
    forEachVocabBlock([&](int64_t vocabBegin, int64_t vocabCount) {
      const Logits policy = policyLogits(scratch_, vocabBegin, vocabCount);
      forReferenceLogits(scratch_, vocabBegin, vocabCount, [&](int64_t row, int64_t col, const float* refZ, int64_t count) {
        sums_[row * strips_ + (vocabBegin + col) / kStripCols] =
            divergence(policy.data + row * policy.stride + col, lse(row), refZ, refLse(row), count, a_.direction);
      });
    });
    for (int64_t row = 0; row < policy_.count; ++row) {
      double kl = 0;
      for (int64_t s = 0; s < strips_; ++s) kl += sums_[row * strips_ + s];
      floats(a_.kl)[token(row)] = static_cast<float>(kl);
    }
  }

 private:
  int64_t strips_;
  float* sums_;  // [count, strips]
  SharedScratch scratch_;
};

class BackwardBlock : KlBlock<KlDivergenceBackward> {
 public:
  BackwardBlock(OpContext& context, const KlDivergenceBackward& g, int64_t begin, int64_t count, SharedScratch scratch)
      : KlBlock(context, g, begin, count, scratch), scratch_(scratch) {}

  /// Blocks of the vocabulary one after the other, since dx sums over them.
  void run() {
    forEachVocabBlock([&](int64_t vocabBegin, int64_t vocabCount) {
      const Logits policy = policyLogits(scratch_, vocabBegin, vocabCount);
      forReferenceLogits(scratch_, vocabBegin, vocabCount, [&](int64_t row, int64_t col, const float* refZ, int64_t count) {
        differentiate(row, policy.data + row * policy.stride + col, refZ, block_ + row * vocabCount + col, count);
      });
      addLogitGradients(context_, scratch_, policy_, {block_, vocabCount, vocabBegin, vocabCount}, a_.dx, a_.dWeight);
    });
  }

 private:
  /// dz may be z.
  void differentiate(int64_t row, const float* z, const float* refZ, float* dz, int64_t count) const {
    const float factor = floats(a_.dKl)[token(row)] * static_cast<float>(a_.lossScale / a_.temperature), kl = floats(a_.kl)[token(row)];
    const float lse = this->lse(row), refLse = this->refLse(row);
    if (a_.direction == KlDirection::Reverse) {
      forEachVector(count, [&](int64_t i, auto lanes) {
        const Vec logPolicy = lanes.load(z + i) - lse, logReference = lanes.load(refZ + i) - refLse;
        lanes.store(dz + i, factor * exp(logPolicy) * (logPolicy - logReference - kl));
      });
    } else {
      forEachVector(count, [&](int64_t i, auto lanes) {
        lanes.store(dz + i, factor * (exp(lanes.load(z + i) - lse) - exp(lanes.load(refZ + i) - refLse)));
      });
    }
  }

  SharedScratch scratch_;
};

}  // namespace

void klDivergenceForward(OpContext& context, const KlDivergenceForward& f) {
  requireFloat32(f.type, "klDivergenceForward");
  requireWeight("klDivergenceForward", f.head, f.head.packedForward);
  requireWeight("klDivergenceForward", f.refHead, f.refHead.packedForward);
  requirePredictionsInRange(f, "klDivergenceForward");
  forEachBlock(f.count, [&](int64_t begin, int64_t count) {
    ForwardBlock(context, f, begin, count, SharedScratch(context)).run();
  });
}

void klDivergenceBackward(OpContext& context, const KlDivergenceBackward& g) {
  requireFloat32(g.type, "klDivergenceBackward");
  requireWeight("klDivergenceBackward", g.head, g.head.packedBackward);
  requireWeight("klDivergenceBackward", g.refHead, g.refHead.packedForward);
  requirePredictionsInRange(g, "klDivergenceBackward");
  forEachBlock(g.count, [&](int64_t begin, int64_t count) {
    BackwardBlock(context, g, begin, count, SharedScratch(context)).run();
  });
}

}  // namespace rlhf::RLHF_ISA
