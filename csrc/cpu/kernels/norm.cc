#include <cmath>

#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"

namespace rlhf::RLHF_ISA {
namespace {

/// Rows cut into blocks, each of which sums its share of the gradients of the norm's parameters in the
/// context's scratch memory. The cut depends on the shape alone, so that the sums have one order.
struct RowBlocks {
  int64_t rowsPerBlock, count;

  RowBlocks(int64_t rows, int64_t sumsPerBlock, const char* op) {
    constexpr int64_t kMostBlocks = 64, kFewestRows = 32;
    const int64_t fit = static_cast<int64_t>(cpu::kScratchPerThread / sizeof(float)) / sumsPerBlock;
    if (fit < 1)
      throw Error(code::kUnsupported, format("%s: rows of %lld columns are not supported on the CPU", op,
                                             static_cast<long long>(sumsPerBlock)));
    rowsPerBlock = std::max(kFewestRows, ceilDivide(rows, std::min(kMostBlocks, fit)));
    count = ceilDivide(rows, rowsPerBlock);
  }
};

/// gradient[c] += Σ over blocks of sums[block · stride + c].
void addBlockSums(OpContext& context, const float* sums, int64_t blocks, int64_t stride, int64_t cols,
                  float* gradient) {
  forEachRange(context, ceilDivide(cols, kWidth), blocks * kWidth, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kWidth;
    forEachVector(std::min(cols, end * kWidth) - first, [&](int64_t i, auto lanes) {
      Vec total = lanes.load(sums + first + i);
      for (int64_t block = 1; block < blocks; ++block) total += lanes.load(sums + block * stride + first + i);
      lanes.store(gradient + first + i, lanes.load(gradient + first + i) + total);
    });
  });
}

/// 1/√(squares/cols + eps)
float inverseDeviation(float squares, int64_t cols, double eps) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(squares) / static_cast<double>(cols) + eps));
}

template <class Lanes>
void storeDx(float* dx, bool accumulate, Lanes lanes, Vec value) {
  lanes.store(dx, accumulate ? lanes.load(dx) + value : value);
}

}  // namespace

void rmsNormForward(OpContext& context, const RmsNormForward& a) {
  requireFloat32(a.type, "rmsNormForward");
  const float* weight = static_cast<const float*>(a.weight);
  forEachRange(context, a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* x = static_cast<const float*>(a.x) + n * a.cols;
      float* y = static_cast<float*>(a.y) + n * a.cols;
      const float squares = sumVectors(a.cols, [&](int64_t i, auto lanes) {
        const Vec value = lanes.load(x + i);
        return value * value;
      });
      const float rstd = inverseDeviation(squares, a.cols, a.eps);
      forEachVector(a.cols, [&](int64_t i, auto lanes) {
        lanes.store(y + i, lanes.load(x + i) * rstd * lanes.load(weight + i));
      });
      static_cast<float*>(a.rstd)[n] = rstd;
    }
  });
}

// With g = weight∘dy and x̂ = rstd·x: dx = rstd·(g − x̂·mean(g∘x̂)), dWeight = Σ_rows dy∘x̂.
void rmsNormBackward(OpContext& context, const RmsNormBackward& a) {
  requireFloat32(a.type, "rmsNormBackward");
  const RowBlocks blocks(a.rows, a.cols, "rmsNormBackward");
  const float* weight = static_cast<const float*>(a.weight);
  float* const sums = static_cast<float*>(context.scratch);
  forEachTask(context, blocks.count, a.rows * a.cols > kElementsPerTask, [&](int64_t block, int) {
    float* const dWeight = sums + block * a.cols;
    if (a.dWeight) std::fill_n(dWeight, a.cols, 0.0f);
    const int64_t end = std::min(a.rows, (block + 1) * blocks.rowsPerBlock);
    for (int64_t n = block * blocks.rowsPerBlock; n < end; ++n) {
      const float* x = static_cast<const float*>(a.x) + n * a.cols;
      const float* dy = static_cast<const float*>(a.dy) + n * a.cols;
      float* dx = static_cast<float*>(a.dx) + n * a.cols;
      const float rstd = static_cast<const float*>(a.rstd)[n];
      const float projection = sumVectors(a.cols, [&](int64_t i, auto lanes) {
        return lanes.load(weight + i) * lanes.load(dy + i) * lanes.load(x + i);
      });
      const float pull = projection * rstd * rstd / static_cast<float>(a.cols);
      forEachVector(a.cols, [&](int64_t i, auto lanes) {
        const Vec value = lanes.load(x + i), gradient = lanes.load(dy + i);
        if (a.dWeight) lanes.store(dWeight + i, lanes.load(dWeight + i) + gradient * (value * rstd));
        storeDx(dx + i, a.accumulateDx, lanes, rstd * (lanes.load(weight + i) * gradient - value * pull));
      });
    }
  });
  if (a.dWeight) addBlockSums(context, sums, blocks.count, a.cols, a.cols, static_cast<float*>(a.dWeight));
}

void layerNormForward(OpContext& context, const LayerNormForward& a) {
  requireFloat32(a.type, "layerNormForward");
  const float* weight = static_cast<const float*>(a.weight);
  const float* bias = static_cast<const float*>(a.bias);
  forEachRange(context, a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* x = static_cast<const float*>(a.x) + n * a.cols;
      float* y = static_cast<float*>(a.y) + n * a.cols;
      const float mean = sumVectors(a.cols, [&](int64_t i, auto lanes) { return lanes.load(x + i); }) /
                         static_cast<float>(a.cols);
      // A second pass, over a row that is in the cache: E[x²] − mean² would cancel.
      const float squares = sumVectors(a.cols, [&](int64_t i, auto lanes) {
        const Vec centred = lanes.load(x + i) - mean;
        return centred * centred;
      });
      const float rstd = inverseDeviation(squares, a.cols, a.eps);
      forEachVector(a.cols, [&](int64_t i, auto lanes) {
        lanes.store(y + i, (lanes.load(x + i) - mean) * rstd * lanes.load(weight + i) + lanes.load(bias + i));
      });
      static_cast<float*>(a.mean)[n] = mean;
      static_cast<float*>(a.rstd)[n] = rstd;
    }
  });
}

// With g = weight∘dy and x̂ = rstd·(x − mean): dx = rstd·(g − mean(g) − x̂·mean(g∘x̂)), dWeight = Σ dy∘x̂, dBias
// = Σ dy.
void layerNormBackward(OpContext& context, const LayerNormBackward& a) {
  requireFloat32(a.type, "layerNormBackward");
  const RowBlocks blocks(a.rows, 2 * a.cols, "layerNormBackward");
  const float* weight = static_cast<const float*>(a.weight);
  float* const sums = static_cast<float*>(context.scratch);
  forEachTask(context, blocks.count, a.rows * a.cols > kElementsPerTask, [&](int64_t block, int) {
    float* const dWeight = sums + block * 2 * a.cols;
    float* const dBias = dWeight + a.cols;
    if (a.dWeight) std::fill_n(dWeight, a.cols, 0.0f);
    if (a.dBias) std::fill_n(dBias, a.cols, 0.0f);
    const int64_t end = std::min(a.rows, (block + 1) * blocks.rowsPerBlock);
    for (int64_t n = block * blocks.rowsPerBlock; n < end; ++n) {
      const float* x = static_cast<const float*>(a.x) + n * a.cols;
      const float* dy = static_cast<const float*>(a.dy) + n * a.cols;
      float* dx = static_cast<float*>(a.dx) + n * a.cols;
      const float mean = static_cast<const float*>(a.mean)[n], rstd = static_cast<const float*>(a.rstd)[n];
      const float width = static_cast<float>(a.cols);
      const float gradientMean =
          sumVectors(a.cols,
                     [&](int64_t i, auto lanes) { return lanes.load(weight + i) * lanes.load(dy + i); }) /
          width;
      const float projection = sumVectors(a.cols,
                                          [&](int64_t i, auto lanes) {
                                            return lanes.load(weight + i) * lanes.load(dy + i) *
                                                   ((lanes.load(x + i) - mean) * rstd);
                                          }) /
                               width;
      forEachVector(a.cols, [&](int64_t i, auto lanes) {
        const Vec normal = (lanes.load(x + i) - mean) * rstd, gradient = lanes.load(dy + i);
        if (a.dWeight) lanes.store(dWeight + i, lanes.load(dWeight + i) + gradient * normal);
        if (a.dBias) lanes.store(dBias + i, lanes.load(dBias + i) + gradient);
        storeDx(dx + i, a.accumulateDx, lanes,
                rstd * (lanes.load(weight + i) * gradient - gradientMean - normal * projection));
      });
    }
  });
  if (a.dWeight)
    addBlockSums(context, sums, blocks.count, 2 * a.cols, a.cols, static_cast<float*>(a.dWeight));
  if (a.dBias)
    addBlockSums(context, sums + a.cols, blocks.count, 2 * a.cols, a.cols, static_cast<float*>(a.dBias));
}

void headNormForward(OpContext& context, const HeadNormForward& a) {
  requireFloat32(a.type, "headNormForward");
  const float* weight = static_cast<const float*>(a.weight);
  forEachRange(context, a.rows, a.heads * a.headDim, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin * a.heads; head < end * a.heads; ++head) {
      float* x = static_cast<float*>(a.x) + head / a.heads * a.stride + head % a.heads * a.headDim;
      const float squares = sumVectors(a.headDim, [&](int64_t i, auto lanes) {
        const Vec value = lanes.load(x + i);
        return value * value;
      });
      const float rstd = inverseDeviation(squares, a.headDim, a.eps);
      if (a.rstd) static_cast<float*>(a.rstd)[head] = rstd;
      float* kept = a.normalised ? static_cast<float*>(a.normalised) + head * a.headDim : nullptr;
      forEachVector(a.headDim, [&](int64_t i, auto lanes) {
        const Vec normal = lanes.load(x + i) * rstd;
        if (kept) lanes.store(kept + i, normal);
        lanes.store(x + i, normal * lanes.load(weight + i));
      });
    }
  });
}

// As rmsNormBackward, x̂ being what the forward pass kept.
void headNormBackward(OpContext& context, const HeadNormBackward& a) {
  requireFloat32(a.type, "headNormBackward");
  const RowBlocks blocks(a.rows, a.headDim, "headNormBackward");
  const float* weight = static_cast<const float*>(a.weight);
  float* const sums = static_cast<float*>(context.scratch);
  const bool worthSharing = a.rows * a.heads * a.headDim > kElementsPerTask;
  forEachTask(context, blocks.count, worthSharing, [&](int64_t block, int) {
    float* const dWeight = sums + block * a.headDim;
    if (a.dWeight) std::fill_n(dWeight, a.headDim, 0.0f);
    const int64_t end = std::min(a.rows, (block + 1) * blocks.rowsPerBlock);
    for (int64_t head = block * blocks.rowsPerBlock * a.heads; head < end * a.heads; ++head) {
      const float* normal = static_cast<const float*>(a.normalised) + head * a.headDim;
      const float rstd = static_cast<const float*>(a.rstd)[head];
      float* dx = static_cast<float*>(a.dx) + head / a.heads * a.stride + head % a.heads * a.headDim;
      const float projection = sumVectors(a.headDim, [&](int64_t i, auto lanes) {
        return lanes.load(weight + i) * lanes.load(dx + i) * lanes.load(normal + i);
      });
      const float pull = projection / static_cast<float>(a.headDim);
      forEachVector(a.headDim, [&](int64_t i, auto lanes) {
        const Vec value = lanes.load(normal + i), gradient = lanes.load(dx + i);
        if (a.dWeight) lanes.store(dWeight + i, lanes.load(dWeight + i) + gradient * value);
        lanes.store(dx + i, rstd * (lanes.load(weight + i) * gradient - value * pull));
      });
    }
  });
  if (a.dWeight)
    addBlockSums(context, sums, blocks.count, a.headDim, a.headDim, static_cast<float*>(a.dWeight));
}

}  // namespace rlhf::RLHF_ISA
