// RMSNorm and LayerNorm, the second being the first of a row whose mean is taken off, plus a bias. Forward: a block per row;
// statistics in float32. Backward: a block per share of the rows, whose parameter gradients stay in shared memory until its end.
// All read a row more than once, but the first time from the cache: traffic is one read and one write.

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/block.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kBackwardBlocks = 264;  // two for each of an H200's 132 multiprocessors; fixed, so that dWeight's bits are
constexpr int64_t kMaxBackwardSums = 36 << 10;  // in float32, in the shared memory of a block

template <class T>
struct NormForwardArrays {
  const T* x;
  const T* weight;
  const T* bias;  // LayerNorm's
  T* y;
  float* mean;  // LayerNorm's
  float* rstd;
  int64_t cols;
  float eps;
};

template <class T, int kPack, bool kCentred>
__global__ void __launch_bounds__(kMaxRowThreads) normForwardKernel(const __grid_constant__ NormForwardArrays<T> a) {
  RLHF_SHARED_MEMORY(BlockSumScratch, shared);
  const int64_t row = blockIdx.x;
  const T* x = a.x + row * a.cols;
  T* y = a.y + row * a.cols;
  const float count = static_cast<float>(a.cols);

  float mean = 0;
  if constexpr (kCentred) {
    forEachPack<kPack>(a.cols, [&](int64_t col) {
      const auto values = loadPack<kPack>(x + col);
#pragma unroll
      for (int i = 0; i < kPack; ++i) mean += toFloat(values.item[i]);
    });
    mean = blockSum(mean, shared) / count;
  }
  float squares = 0;
  forEachPack<kPack>(a.cols, [&](int64_t col) {
    const auto values = loadPack<kPack>(x + col);
#pragma unroll
    for (int i = 0; i < kPack; ++i) squares += (toFloat(values.item[i]) - mean) * (toFloat(values.item[i]) - mean);
  });
  const float rstd = 1.0f / sqrtf(blockSum(squares, shared) / count + a.eps);
  if (threadIdx.x == 0) {
    if constexpr (kCentred) a.mean[row] = mean;
    a.rstd[row] = rstd;
  }

  forEachPack<kPack>(a.cols, [&](int64_t col) {
    const auto values = loadPack<kPack>(x + col), weights = loadPack<kPack>(a.weight + col);
    Pack<T, kPack> biases = {}, result;
    if constexpr (kCentred) biases = loadPack<kPack>(a.bias + col);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      float value = (toFloat(values.item[i]) - mean) * rstd * toFloat(weights.item[i]);
      if constexpr (kCentred) value += toFloat(biases.item[i]);
      result.item[i] = fromFloat<T>(value);
    }
    storePack(y + col, result);
  });
}

struct NormBackwardShared {
  BlockSumsScratch<float, 2> sums;
  alignas(16) float gradients[1];  // [cols] of dWeight and [cols] of dBias, where they are asked for
};

template <class T>
struct NormBackwardArrays {
  const T* x;
  const T* weight;
  const float* mean;  // LayerNorm's
  const float* rstd;
  const T* dy;
  T* dx;
  float* dWeightPartials;  // [gridDim.x, cols] or null
  float* dBiasPartials;
  int64_t rows, cols;
  bool accumulateDx;
};

/// With x̂ = (x − mean)·rstd and g = dy·weight: dx = rstd·(g − mean(g) − x̂·mean(g·x̂)), dWeight += dy·x̂, dBias += dy; RMSNorm
/// takes off no mean.
template <class T, int kPack, bool kCentred>
__global__ void __launch_bounds__(kMaxRowThreads) normBackwardKernel(const __grid_constant__ NormBackwardArrays<T> a) {
  RLHF_SHARED_MEMORY(NormBackwardShared, shared);
  float* const dWeight = a.dWeightPartials ? shared.gradients : nullptr;
  float* const dBias = a.dBiasPartials ? shared.gradients + (dWeight ? a.cols : 0) : nullptr;
  // A column belongs to one thread throughout, so its sum needs no barrier.
  forEachPack<kPack>(a.cols, [&](int64_t col) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (dWeight) dWeight[col + i] = 0;
      if (dBias) dBias[col + i] = 0;
    }
  });
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T* x = a.x + row * a.cols;
    const T* dy = a.dy + row * a.cols;
    T* dx = a.dx + row * a.cols;
    const float rstd = a.rstd[row];
    float mean = 0;
    if constexpr (kCentred) mean = a.mean[row];

    float sums[2] = {0, 0};  // of g·x̂ and of g
    forEachPack<kPack>(a.cols, [&](int64_t col) {
      const auto values = loadPack<kPack>(x + col), gradients = loadPack<kPack>(dy + col);
      const auto weights = loadPack<kPack>(a.weight + col);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float normalized = (toFloat(values.item[i]) - mean) * rstd;
        const float gradient = toFloat(gradients.item[i]);
        sums[0] += gradient * toFloat(weights.item[i]) * normalized;
        if constexpr (kCentred) sums[1] += gradient * toFloat(weights.item[i]);
        if (dWeight) dWeight[col + i] += gradient * normalized;
        if (dBias) dBias[col + i] += gradient;
      }
    });
    blockSums(sums, shared.sums);
    const float projection = sums[0] / static_cast<float>(a.cols), meanGradient = sums[1] / static_cast<float>(a.cols);

    forEachPack<kPack>(a.cols, [&](int64_t col) {
      const auto values = loadPack<kPack>(x + col), gradients = loadPack<kPack>(dy + col);
      const auto weights = loadPack<kPack>(a.weight + col);
      Pack<T, kPack> result = {};
      if (a.accumulateDx) result = loadPack<kPack>(dx + col);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float normalized = (toFloat(values.item[i]) - mean) * rstd;
        const float centred = toFloat(gradients.item[i]) * toFloat(weights.item[i]) - meanGradient;
        result.item[i] = fromFloat<T>(toFloat(result.item[i]) + rstd * (centred - normalized * projection));
      }
      storePack(dx + col, result);
    });
  }
  forEachPack<kPack>(a.cols, [&](int64_t col) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      if (dWeight) a.dWeightPartials[blockIdx.x * a.cols + col + i] = dWeight[col + i];
      if (dBias) a.dBiasPartials[blockIdx.x * a.cols + col + i] = dBias[col + i];
    }
  });
}

template <bool kCentred, class T>
void launchForward(OpContext& context, int64_t rows, const NormForwardArrays<T>& arrays) {
  const auto launch = [&](auto kernel) {
    RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(rows)), dim3(static_cast<uint32_t>(threadsFor(arrays.cols))),
                sizeof(BlockSumScratch), context.stream, arrays);
  };
  constexpr int kPack = kWidestPack<T>;
  if (canPack<T>(kPack, {arrays.cols}, {arrays.x, arrays.weight, arrays.bias, arrays.y})) {
    launch(normForwardKernel<T, kPack, kCentred>);
  } else {
    launch(normForwardKernel<T, 1, kCentred>);
  }
}

int backwardBlocks(int64_t rows) { return static_cast<int>(std::min<int64_t>(rows, kBackwardBlocks)); }

/// The gradients of the parameters, summed over rows; each may be null.
struct ParameterGradients {
  void* weight;
  void* bias;
};

/// Runs the kernel on arrays that lack their partial sums, and adds those up.
template <bool kCentred, class T>
void launchBackward(OpContext& context, const char* op, NormBackwardArrays<T> arrays, const ParameterGradients& parameters) {
  const int blocks = backwardBlocks(arrays.rows);
  const int64_t sums = arrays.cols * ((parameters.weight != nullptr) + (parameters.bias != nullptr));
  if (sums > kMaxBackwardSums)
    throw Error(code::kUnsupported, format("%s: parameter gradients of %lld numbers; the CUDA backend sums up to %lld", op,
                                           static_cast<long long>(sums), static_cast<long long>(kMaxBackwardSums)));
  if (sums > 0) requireScratch(context, normScratchBytes(arrays.rows, arrays.cols), op);
  auto* const partials = static_cast<float*>(context.scratch);
  if (parameters.weight) arrays.dWeightPartials = partials;
  if (parameters.bias) arrays.dBiasPartials = partials + (parameters.weight ? blocks * arrays.cols : 0);

  const auto launch = [&](auto kernel) {
    RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(static_cast<uint32_t>(threadsFor(arrays.cols))),
                sizeof(NormBackwardShared) + static_cast<size_t>(sums) * sizeof(float), context.stream, arrays);
  };
  constexpr int kPack = kWidestPack<T>;
  if (canPack<T>(kPack, {arrays.cols}, {arrays.x, arrays.weight, arrays.dy, arrays.dx})) {
    launch(normBackwardKernel<T, kPack, kCentred>);
  } else {
    launch(normBackwardKernel<T, 1, kCentred>);
  }
  const auto addUp = [&](void* gradient, const float* sumsOfBlocks) {
    if (gradient) launchAddPartials(context, static_cast<float*>(gradient), sumsOfBlocks, blocks, arrays.cols);
  };
  addUp(parameters.weight, arrays.dWeightPartials);
  addUp(parameters.bias, arrays.dBiasPartials);
}

}  // namespace

size_t normScratchBytes(int64_t rows, int64_t cols) {
  return static_cast<size_t>(backwardBlocks(rows)) * static_cast<size_t>(cols) * 2 * sizeof(float);
}

void rmsNormForward(OpContext& context, const RmsNormForward& a) {
  dispatchType(a.type, "rmsNormForward", [&](auto zero) {
    using T = decltype(zero);
    launchForward<false>(context, a.rows,
                         NormForwardArrays<T>{static_cast<const T*>(a.x), static_cast<const T*>(a.weight), nullptr, static_cast<T*>(a.y),
                                              nullptr, static_cast<float*>(a.rstd), a.cols, static_cast<float>(a.eps)});
  });
}

void layerNormForward(OpContext& context, const LayerNormForward& a) {
  dispatchType(a.type, "layerNormForward", [&](auto zero) {
    using T = decltype(zero);
    launchForward<true>(context, a.rows,
                        NormForwardArrays<T>{static_cast<const T*>(a.x), static_cast<const T*>(a.weight), static_cast<const T*>(a.bias),
                                             static_cast<T*>(a.y), static_cast<float*>(a.mean), static_cast<float*>(a.rstd), a.cols,
                                             static_cast<float>(a.eps)});
  });
}

void rmsNormBackward(OpContext& context, const RmsNormBackward& a) {
  dispatchType(a.type, "rmsNormBackward", [&](auto zero) {
    using T = decltype(zero);
    const NormBackwardArrays<T> arrays{static_cast<const T*>(a.x), static_cast<const T*>(a.weight), nullptr,
                                       static_cast<const float*>(a.rstd), static_cast<const T*>(a.dy), static_cast<T*>(a.dx),
                                       nullptr, nullptr, a.rows, a.cols, a.accumulateDx != 0};
    launchBackward<false>(context, "rmsNormBackward", arrays, {a.dWeight, nullptr});
  });
}

void layerNormBackward(OpContext& context, const LayerNormBackward& a) {
  dispatchType(a.type, "layerNormBackward", [&](auto zero) {
    using T = decltype(zero);
    const NormBackwardArrays<T> arrays{static_cast<const T*>(a.x), static_cast<const T*>(a.weight), static_cast<const float*>(a.mean),
                                       static_cast<const float*>(a.rstd), static_cast<const T*>(a.dy), static_cast<T*>(a.dx),
                                       nullptr, nullptr, a.rows, a.cols, a.accumulateDx != 0};
    launchBackward<true>(context, "layerNormBackward", arrays, {a.dWeight, a.dBias});
  });
}

}  // namespace rlhf::cuda
