// RMSNorm. Forward: a block per row; statistics in float32. Backward: a block per share of the rows, whose dWeight stays in
// shared memory until its end. Both read a row twice, the second time from the cache: traffic is one read and one write.

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/block.cuh"
#include "cuda/reduce.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kBackwardBlocks = 264;  // two for each of an H200's 132 multiprocessors; fixed, so that dWeight's bits are
constexpr int64_t kMaxBackwardCols = 36 << 10;  // a row of float32 in the shared memory of a block

/// Threads for a row: enough that each has a pack to load, whole warps, and a function of the row's length alone.
int threadsFor(int64_t cols) {
  const int64_t packs = (cols + 7) / 8;
  return static_cast<int>(std::min<int64_t>(kMaxThreads, (packs + 31) / 32 * 32));
}

template <class T>
bool canPack(int64_t cols, std::initializer_list<const void*> arrays) {
  return cols % kWidestPack<T> == 0 && std::all_of(arrays.begin(), arrays.end(), [](const void* array) {
           return reinterpret_cast<uintptr_t>(array) % 16 == 0;
         });
}

/// Calls f(first column, …) for the packs of a row that fall to this thread.
template <int kPack, class Function>
RLHF_DEVICE void forEachPack(int64_t cols, Function&& f) {
  for (int64_t col = static_cast<int64_t>(threadIdx.x) * kPack; col < cols; col += static_cast<int64_t>(blockDim.x) * kPack)
    f(col);
}

template <int kPack, class T>
RLHF_DEVICE Pack<T, kPack> loadPack(const T* address) {
  return *reinterpret_cast<const Pack<T, kPack>*>(address);
}

template <class T, int kPack>
__global__ void __launch_bounds__(kMaxThreads)
    rmsNormForwardKernel(const T* x, const T* weight, T* y, float* rstdOut, int64_t cols, float eps) {
  RLHF_SHARED_MEMORY(BlockSumScratch, shared);
  const int64_t row = blockIdx.x;
  x += row * cols;
  y += row * cols;

  float squares = 0;
  forEachPack<kPack>(cols, [&](int64_t col) {
    const auto values = loadPack<kPack>(x + col);
#pragma unroll
    for (int i = 0; i < kPack; ++i) squares += toFloat(values.item[i]) * toFloat(values.item[i]);
  });
  const float rstd = 1.0f / sqrtf(blockSum(squares, shared) / static_cast<float>(cols) + eps);
  if (threadIdx.x == 0) rstdOut[row] = rstd;

  forEachPack<kPack>(cols, [&](int64_t col) {
    const auto values = loadPack<kPack>(x + col), weights = loadPack<kPack>(weight + col);
    Pack<T, kPack> result;
#pragma unroll
    for (int i = 0; i < kPack; ++i)
      result.item[i] = fromFloat<T>(toFloat(values.item[i]) * rstd * toFloat(weights.item[i]));
    *reinterpret_cast<Pack<T, kPack>*>(y + col) = result;
  });
}

struct RmsNormBackwardShared {
  BlockSumScratch sum;
  alignas(16) float dWeight[1];  // [cols], only where dWeight is asked for
};

template <class T>
struct RmsNormBackwardArrays {
  const T* x;
  const T* weight;
  const float* rstd;
  const T* dy;
  T* dx;
  float* dWeightPartials;  // [gridDim.x, cols] or null
  int64_t rows, cols;
  bool accumulateDx;
};

/// With x̂ = x·rstd and g = dy·weight: dx = rstd·(g − x̂·mean(g·x̂)), dWeight += dy·x̂.
template <class T, int kPack>
__global__ void __launch_bounds__(kMaxThreads)
    rmsNormBackwardKernel(const __grid_constant__ RmsNormBackwardArrays<T> a) {
  RLHF_SHARED_MEMORY(RmsNormBackwardShared, shared);
  // A column belongs to one thread throughout, so its sum needs no barrier.
  if (a.dWeightPartials) {
    forEachPack<kPack>(a.cols, [&](int64_t col) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) shared.dWeight[col + i] = 0;
    });
  }
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T* x = a.x + row * a.cols;
    const T* dy = a.dy + row * a.cols;
    T* dx = a.dx + row * a.cols;
    const float rstd = a.rstd[row];

    float projection = 0;
    forEachPack<kPack>(a.cols, [&](int64_t col) {
      const auto values = loadPack<kPack>(x + col), gradients = loadPack<kPack>(dy + col);
      const auto weights = loadPack<kPack>(a.weight + col);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float normalized = toFloat(values.item[i]) * rstd;
        projection += toFloat(gradients.item[i]) * toFloat(weights.item[i]) * normalized;
        if (a.dWeightPartials) shared.dWeight[col + i] += toFloat(gradients.item[i]) * normalized;
      }
    });
    projection = blockSum(projection, shared.sum) / static_cast<float>(a.cols);

    forEachPack<kPack>(a.cols, [&](int64_t col) {
      const auto values = loadPack<kPack>(x + col), gradients = loadPack<kPack>(dy + col);
      const auto weights = loadPack<kPack>(a.weight + col);
      Pack<T, kPack> result = {};
      if (a.accumulateDx) result = loadPack<kPack>(dx + col);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float normalized = toFloat(values.item[i]) * rstd;
        const float gradient =
            rstd * (toFloat(gradients.item[i]) * toFloat(weights.item[i]) - normalized * projection);
        result.item[i] = fromFloat<T>(toFloat(result.item[i]) + gradient);
      }
      *reinterpret_cast<Pack<T, kPack>*>(dx + col) = result;
    });
  }
  if (a.dWeightPartials) {
    forEachPack<kPack>(a.cols, [&](int64_t col) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) a.dWeightPartials[blockIdx.x * a.cols + col + i] = shared.dWeight[col + i];
    });
  }
}

int backwardBlocks(int64_t rows) { return static_cast<int>(std::min<int64_t>(rows, kBackwardBlocks)); }

}  // namespace

size_t rmsNormScratchBytes(int64_t rows, int64_t cols) {
  return static_cast<size_t>(backwardBlocks(rows)) * static_cast<size_t>(cols) * sizeof(float);
}

void rmsNormForward(OpContext& context, const RmsNormForward& a) {
  dispatchType(a.type, "rmsNormForward", [&](auto zero) {
    using T = decltype(zero);
    const auto launch = [&](auto kernel) {
      RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(a.rows)), dim3(static_cast<uint32_t>(threadsFor(a.cols))),
                  sizeof(BlockSumScratch), context.stream, static_cast<const T*>(a.x), static_cast<const T*>(a.weight),
                  static_cast<T*>(a.y), static_cast<float*>(a.rstd), a.cols, static_cast<float>(a.eps));
    };
    if (canPack<T>(a.cols, {a.x, a.weight, a.y})) {
      launch(rmsNormForwardKernel<T, kWidestPack<T>>);
    } else {
      launch(rmsNormForwardKernel<T, 1>);
    }
  });
}

void rmsNormBackward(OpContext& context, const RmsNormBackward& a) {
  const int blocks = backwardBlocks(a.rows);
  if (a.dWeight) {
    requireScratch(context, rmsNormScratchBytes(a.rows, a.cols), "rmsNormBackward");
    if (a.cols > kMaxBackwardCols)
      throw Error(code::kUnsupported, format("rmsNormBackward: dWeight of %lld columns; the CUDA backend sums up to %lld",
                                             static_cast<long long>(a.cols), static_cast<long long>(kMaxBackwardCols)));
  }
  auto* partials = a.dWeight ? static_cast<float*>(context.scratch) : nullptr;
  const size_t sharedBytes =
      sizeof(RmsNormBackwardShared) + (a.dWeight ? static_cast<size_t>(a.cols) * sizeof(float) : 0);
  dispatchType(a.type, "rmsNormBackward", [&](auto zero) {
    using T = decltype(zero);
    const RmsNormBackwardArrays<T> arrays{static_cast<const T*>(a.x),  static_cast<const T*>(a.weight),
                                          static_cast<const float*>(a.rstd), static_cast<const T*>(a.dy),
                                          static_cast<T*>(a.dx),       partials,
                                          a.rows,                      a.cols,
                                          a.accumulateDx != 0};
    const auto launch = [&](auto kernel) {
      RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(static_cast<uint32_t>(threadsFor(a.cols))), sharedBytes,
                  context.stream, arrays);
    };
    if (canPack<T>(a.cols, {a.x, a.weight, a.dy, a.dx})) {
      launch(rmsNormBackwardKernel<T, kWidestPack<T>>);
    } else {
      launch(rmsNormBackwardKernel<T, 1>);
    }
  });
  if (a.dWeight) launchAddPartials(context, static_cast<float*>(a.dWeight), partials, blocks, a.cols);
}

}  // namespace rlhf::cuda
