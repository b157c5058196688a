// RMSNorm of every head, in place: a warp per head. Backward: a warp goes through a share of the heads and keeps its dWeight in
// shared memory, where the block adds its warps' up.

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/warp.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kHeadPack = 4;            // 32 lanes × 4 elements: a head of 128
constexpr int kBackwardBlocks = 528;    // four for each of an H200's 132 multiprocessors; fixed, so that dWeight's bits are
constexpr int64_t kMaxHeadDim = 8 << 10;  // kWarps rows of float32 in the shared memory of a block

/// Calls f(first element) for the packs of a head that fall to this lane.
template <int kPack, class Function>
RLHF_DEVICE void forEachHeadPack(int64_t headDim, Function&& f) {
  for (int64_t d = static_cast<int64_t>(threadIdx.x % 32) * kPack; d < headDim; d += 32 * kPack) f(d);
}

template <class T>
struct HeadNormArrays {
  const T* weight;
  T* x;           // backward: dx
  T* normalised;  // backward: read only
  float* rstd;
  float* dWeightPartials;  // backward: [gridDim.x, headDim] or null
  int64_t rows, heads, headDim, stride;
  float eps;

  RLHF_DEVICE T* head(int64_t index) const { return x + index / heads * stride + index % heads * headDim; }
};

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) headNormForwardKernel(const __grid_constant__ HeadNormArrays<T> a) {
  const int64_t head = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (head >= a.rows * a.heads) return;
  T* x = a.head(head);
  float squares = 0;
  forEachHeadPack<kPack>(a.headDim, [&](int64_t d) {
    const auto values = loadPack<kPack>(x + d);
#pragma unroll
    for (int i = 0; i < kPack; ++i) squares += toFloat(values.item[i]) * toFloat(values.item[i]);
  });
  const float rstd = 1.0f / sqrtf(groupSum(squares) / static_cast<float>(a.headDim) + a.eps);
  if (a.rstd && threadIdx.x % 32 == 0) a.rstd[head] = rstd;
  forEachHeadPack<kPack>(a.headDim, [&](int64_t d) {
    auto values = loadPack<kPack>(x + d);
    const auto weights = loadPack<kPack>(a.weight + d);
    Pack<T, kPack> normalised;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float value = toFloat(values.item[i]) * rstd;
      normalised.item[i] = fromFloat<T>(value);
      values.item[i] = fromFloat<T>(value * toFloat(weights.item[i]));
    }
    if (a.normalised) storePack(a.normalised + head * a.headDim + d, normalised);
    storePack(x + d, values);
  });
}

struct HeadNormBackwardShared {
  float dWeight[1];  // [kWarps, headDim], where it is asked for
};

/// With g = dx·weight: dx = rstd·(g − normalised·mean(g·normalised)), dWeight += dx·normalised.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) headNormBackwardKernel(const __grid_constant__ HeadNormArrays<T> a) {
  RLHF_SHARED_MEMORY(HeadNormBackwardShared, shared);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float* const dWeight = shared.dWeight + warp * a.headDim;
  if (a.dWeightPartials) {  // an element of a head belongs to one lane throughout
    forEachHeadPack<kPack>(a.headDim, [&](int64_t d) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) dWeight[d + i] = 0;
    });
  }
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t head = static_cast<int64_t>(blockIdx.x) * kWarps + warp; head < a.rows * a.heads; head += step) {
    T* dx = a.head(head);
    const T* kept = a.normalised + head * a.headDim;
    float projection = 0;
    forEachHeadPack<kPack>(a.headDim, [&](int64_t d) {
      const auto gradients = loadPack<kPack>(dx + d), normalised = loadPack<kPack>(kept + d), weights = loadPack<kPack>(a.weight + d);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float product = toFloat(gradients.item[i]) * toFloat(normalised.item[i]);
        projection += product * toFloat(weights.item[i]);
        if (a.dWeightPartials) dWeight[d + i] += product;
      }
    });
    projection = groupSum(projection) / static_cast<float>(a.headDim);
    const float rstd = a.rstd[head];
    forEachHeadPack<kPack>(a.headDim, [&](int64_t d) {
      auto gradients = loadPack<kPack>(dx + d);
      const auto normalised = loadPack<kPack>(kept + d), weights = loadPack<kPack>(a.weight + d);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float gradient = toFloat(gradients.item[i]) * toFloat(weights.item[i]);
        gradients.item[i] = fromFloat<T>(rstd * (gradient - toFloat(normalised.item[i]) * projection));
      }
      storePack(dx + d, gradients);
    });
  }
  if (!a.dWeightPartials) return;
  syncThreads();
  for (int64_t d = threadIdx.x; d < a.headDim; d += kThreads) {
    float sum = 0;
    for (int each = 0; each < kWarps; ++each) sum += shared.dWeight[each * a.headDim + d];
    a.dWeightPartials[blockIdx.x * a.headDim + d] = sum;
  }
}

template <class T>
bool canPackHeads(const HeadNormArrays<T>& a) {
  return canPack<T>(kHeadPack, {a.headDim, a.stride}, {a.weight, a.x, a.normalised});
}

int64_t forwardBlocks(int64_t heads) { return (heads + kWarps - 1) / kWarps; }
int64_t backwardBlocks(int64_t heads) { return std::min<int64_t>(forwardBlocks(heads), kBackwardBlocks); }

}  // namespace

size_t headNormScratchBytes(int64_t rows, int64_t heads, int64_t headDim) {
  return static_cast<size_t>(backwardBlocks(rows * heads) * headDim) * sizeof(float);
}

void headNormForward(OpContext& context, const HeadNormForward& a) {
  dispatchType(a.type, "headNormForward", [&](auto zero) {
    using T = decltype(zero);
    const HeadNormArrays<T> arrays{static_cast<const T*>(a.weight), static_cast<T*>(a.x), static_cast<T*>(a.normalised),
                                   static_cast<float*>(a.rstd), nullptr, a.rows, a.heads, a.headDim, a.stride, static_cast<float>(a.eps)};
    const auto kernel = canPackHeads(arrays) ? headNormForwardKernel<T, kHeadPack> : headNormForwardKernel<T, 1>;
    RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(forwardBlocks(a.rows * a.heads))), dim3(kThreads), 0, context.stream, arrays);
  });
}

void headNormBackward(OpContext& context, const HeadNormBackward& a) {
  const int64_t blocks = backwardBlocks(a.rows * a.heads);
  if (a.dWeight) {
    requireScratch(context, headNormScratchBytes(a.rows, a.heads, a.headDim), "headNormBackward");
    if (a.headDim > kMaxHeadDim)
      throw Error(code::kUnsupported, format("headNormBackward: dWeight of heads of %lld; the CUDA backend sums up to %lld",
                                             static_cast<long long>(a.headDim), static_cast<long long>(kMaxHeadDim)));
  }
  auto* partials = a.dWeight ? static_cast<float*>(context.scratch) : nullptr;
  const size_t sharedBytes = a.dWeight ? static_cast<size_t>(kWarps * a.headDim) * sizeof(float) : 0;
  dispatchType(a.type, "headNormBackward", [&](auto zero) {
    using T = decltype(zero);
    const HeadNormArrays<T> arrays{static_cast<const T*>(a.weight), static_cast<T*>(a.dx),
                                   const_cast<T*>(static_cast<const T*>(a.normalised)),
                                   const_cast<float*>(static_cast<const float*>(a.rstd)), partials, a.rows, a.heads, a.headDim, a.stride, 0};
    const auto kernel = canPackHeads(arrays) ? headNormBackwardKernel<T, kHeadPack> : headNormBackwardKernel<T, 1>;
    RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(kThreads), sharedBytes, context.stream, arrays);
  });
  if (a.dWeight) launchAddPartials(context, static_cast<float*>(a.dWeight), partials, static_cast<int>(blocks), a.headDim);
}

}  // namespace rlhf::cuda
