#include <algorithm>
#include <cmath>

#include "cpu/kernels/predictions.h"
#include "cpu/kernels/table.h"

// The vocabulary is cut into strips of kStripCols logits. A strip of a few rows lies in the first-level cache when its maximum,
// Σ e^(z − max) and Σ e^(z − max)·(z − max) are taken; the strips of a row are combined in rising order, in double precision.

namespace rlhf::RLHF_ISA {
namespace {

using cpu::kVocabPerBlock;
static_assert(cpu::kVocabPerStatistic == kStripCols);
static_assert(kVocabPerBlock % kStripCols == 0, "blocks of the backward pass are cut where strips are");

/// Statistics of one row over one strip of its logits.
struct StripStatistic {
  float maximum = 0;
  float sum = 0;       // Σ e^(z − maximum)
  float weighted = 0;  // Σ e^(z − maximum)·(z − maximum)
};

/// `z` holds whole vectors: what lies beyond `count` in the last one is overwritten.
StripStatistic statisticOf(float* z, int64_t count) {
  std::fill(z + count, z + ceilDivide(count, kWidth) * kWidth, z[0]);
  Vec highest = set1(z[0]);
  for (int64_t i = 0; i < count; i += kWidth) highest = max(highest, load(z + i));
  const float maximum = RLHF_ISA::maximum(highest);
  Vec sums{}, weighted{};
  forEachVector(count, [&](int64_t i, auto lanes) {
    const Vec shifted = lanes.load(z + i) - maximum;
    const Vec e = lanes.keep(exp(shifted));
    sums += e;
    weighted += e * lanes.keep(shifted);
  });
  return {maximum, sum(sums), sum(weighted)};
}

/// The forward pass for one block of predictions.
class ForwardBlock {
 public:
  ForwardBlock(const TokenLogProbForward& f, int64_t begin, int64_t count, SharedScratch& scratch)
      : f_(f), begin_(begin), strips_(ceilDivide(f.vocab, kStripCols)),
        rows_(f.x, f.cols, f.head, f.vocab, f.sources + begin, count, scratch) {
    targetLogits_ = scratch.take(count);
    statistics_ = reinterpret_cast<StripStatistic*>(scratch.take(3 * count * strips_));
  }

  Product product() const { return rows_.logits(0, f_.vocab); }

  void operator()(const Strip& strip) {
    const auto inverseTemperature = static_cast<float>(1 / f_.temperature);
    for (int64_t i = 0; i < strip.rows; ++i) {
      const int64_t row = strip.row + i;
      float* const z = strip.values + i * strip.stride;
      scale(z, strip.cols, inverseTemperature);
      statistics_[row * strips_ + strip.col / kStripCols] = statisticOf(z, strip.cols);
      const int64_t target = f_.tokens[f_.predictions[begin_ + row]] - strip.col;
      if (target >= 0 && target < strip.cols) targetLogits_[row] = z[target];
      if (f_.logits) std::copy_n(z, strip.cols, floats(f_.logits) + (begin_ + row) * f_.vocab + strip.col);
    }
  }

  void combine(int64_t row) const {
    const StripStatistic* const statistics = statistics_ + row * strips_;
    float highest = statistics[0].maximum;
    for (int64_t s = 1; s < strips_; ++s) highest = std::max(highest, statistics[s].maximum);
    double sum = 0, weighted = 0;
    for (int64_t s = 0; s < strips_; ++s) {
      const double distance = static_cast<double>(statistics[s].maximum) - highest, factor = std::exp(distance);
      sum += factor * statistics[s].sum;
      weighted += factor * (statistics[s].weighted + statistics[s].sum * distance);
    }
    const double logSum = std::log(sum);
    const int64_t t = f_.predictions[begin_ + row];
    floats(f_.lse)[t] = static_cast<float>(highest + logSum);
    floats(f_.logProb)[t] = static_cast<float>(static_cast<double>(targetLogits_[row]) - highest - logSum);
    floats(f_.entropy)[t] = static_cast<float>(logSum - weighted / sum);
  }

 private:
  const TokenLogProbForward& f_;
  int64_t begin_, strips_;
  PredictionBlock rows_;
  float* targetLogits_;
  StripStatistic* statistics_;  // [count][strips]
};

/// The gradients of one row's statistics, and what turns a logit into its gradient:
/// dz = p·(fromLse − fromLogProb − fromEntropy·(log p + entropy)) + fromLogProb at the token.
struct RowGradient {
  float fromLogProb = 0, fromLse = 0, fromEntropy = 0, lse = 0, entropy = 0;
  int64_t token = 0;
};

/// Turns logits [vocabBegin, vocabBegin + count) of a row into their gradients, times `factor`.
void differentiate(const RowGradient& g, const float* z, float* dz, int64_t vocabBegin, int64_t count, float factor) {
  const float slope = (g.fromLse - g.fromLogProb - g.fromEntropy * g.entropy) * factor;
  const float curve = g.fromEntropy * factor;
  forEachVector(count, [&](int64_t i, auto lanes) {
    const Vec logProb = lanes.load(z + i) - g.lse;
    lanes.store(dz + i, exp(logProb) * (slope - curve * logProb));
  });
  const int64_t token = g.token - vocabBegin;
  if (token >= 0 && token < count) dz[token] += g.fromLogProb * factor;
}

/// The backward pass for one block of predictions: blocks of the vocabulary one after the other, since dx sums over them.
class BackwardBlock {
 public:
  BackwardBlock(OpContext& context, const TokenLogProbBackward& g, int64_t begin, int64_t count, SharedScratch scratch)
      : context_(context), g_(g), begin_(begin), scratch_(scratch),
        inverseTemperature_(static_cast<float>(1 / g.temperature)),
        factor_(static_cast<float>(g.lossScale / g.temperature)),
        rows_(g.x, g.cols, g.head, g.vocab, g.sources + begin, count, scratch_) {
    if (!g.logits) dz_ = scratch_.take(count * std::min(g.vocab, kVocabPerBlock));
  }

  void run() {
    for (int64_t vocabBegin = 0; vocabBegin < g_.vocab; vocabBegin += kVocabPerBlock) {
      const int64_t vocabCount = std::min(kVocabPerBlock, g_.vocab - vocabBegin);
      const LogitGradients dz = g_.logits ? differentiateKept(vocabBegin, vocabCount) : recompute(vocabBegin, vocabCount);
      addLogitGradients(context_, scratch_, rows_, dz, g_.dx, g_.dWeight);
    }
  }

 private:
  RowGradient rowGradient(int64_t row) const {
    const int64_t t = g_.predictions[begin_ + row];
    const auto at = [t](const void* values) { return values ? floats(values)[t] : 0.0f; };
    return {at(g_.dLogProb), at(g_.dLse), at(g_.dEntropy), at(g_.lse), at(g_.entropy), g_.tokens[t]};
  }

  LogitGradients differentiateKept(int64_t vocabBegin, int64_t vocabCount) {
    float* const logits = floats(g_.logits) + begin_ * g_.vocab + vocabBegin;
    forEachTask(context_, rows_.count, rows_.count * vocabCount >= kElementsPerTask, [&](int64_t row, int) {
      float* const z = logits + row * g_.vocab;
      differentiate(rowGradient(row), z, z, vocabBegin, vocabCount, factor_);
    });
    return {logits, g_.vocab, vocabBegin, vocabCount};
  }

  LogitGradients recompute(int64_t vocabBegin, int64_t vocabCount) {
    auto consume = [&](const Strip& strip) {
      for (int64_t i = 0; i < strip.rows; ++i) {
        const int64_t row = strip.row + i;
        float* const z = strip.values + i * strip.stride;
        scale(z, strip.cols, inverseTemperature_);
        differentiate(rowGradient(row), z, dz_ + row * vocabCount + strip.col, vocabBegin + strip.col, strip.cols, factor_);
      }
    };
    gemm(context_, scratch_, rows_.logits(vocabBegin, vocabCount), consume);
    return {dz_, vocabCount, vocabBegin, vocabCount};
  }

  OpContext& context_;
  const TokenLogProbBackward& g_;
  int64_t begin_;
  SharedScratch scratch_;
  float inverseTemperature_, factor_;
  PredictionBlock rows_;
  float* dz_ = nullptr;
};

/// Tokens index the vocabulary.
template <class Arguments>
void requireTokensInRange(const Arguments& a, const char* op) {
  requirePredictionsInRange(a, op);
  for (int64_t p = 0; p < a.count; ++p) {
    const int64_t t = a.predictions[p];
    requireIndex(op, "tokens", t, a.tokens[t], a.vocab, code::kTokenRange);
  }
}

}  // namespace

void tokenLogProbForward(OpContext& context, const TokenLogProbForward& f) {
  requireFloat32(f.type, "tokenLogProbForward");
  requireWeight("tokenLogProbForward", f.head, f.head.packedForward);
  requireTokensInRange(f, "tokenLogProbForward");
  forEachBlock(f.count, [&](int64_t begin, int64_t count) {
    SharedScratch scratch(context);
    ForwardBlock block(f, begin, count, scratch);
    gemm(context, scratch, block.product(), block, Columns::FixedCuts);
    const bool share = count * ceilDivide(f.vocab, kStripCols) >= 512;
    forEachTask(context, count, share, [&](int64_t row, int) { block.combine(row); });
  });
}

void tokenLogProbBackward(OpContext& context, const TokenLogProbBackward& g) {
  requireFloat32(g.type, "tokenLogProbBackward");
  requireWeight("tokenLogProbBackward", g.head, g.head.packedBackward);
  requireTokensInRange(g, "tokenLogProbBackward");
  forEachBlock(g.count, [&](int64_t begin, int64_t count) {
    BackwardBlock(context, g, begin, count, SharedScratch(context)).run();
  });
}

}  // namespace rlhf::RLHF_ISA
