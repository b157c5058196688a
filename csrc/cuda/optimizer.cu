// AdamW, rounding and the norm of gradients over flat arrays, a thread per pack.

#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "cuda/sums.cuh"
#include "ops/optimizer.h"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct AdamWArrays {
  const T* gradient;
  T* parameter;
  T* m;
  T* v;

  AdamWArrays from(int64_t first) const { return {gradient + first, parameter + first, m + first, v + first}; }
};

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    adamWKernel(const __grid_constant__ AdamWArrays<T> a, const __grid_constant__ AdamWConstants s, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  if (i >= count) return;
  const auto gradients = loadPack<kPack>(a.gradient + i);
  auto parameters = loadPack<kPack>(a.parameter + i), means = loadPack<kPack>(a.m + i), squares = loadPack<kPack>(a.v + i);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    const float g = s.gradientScale * toFloat(gradients.item[j]);
    const float mean = s.beta1 * toFloat(means.item[j]) + s.oneMinusBeta1 * g;
    const float square = s.beta2 * toFloat(squares.item[j]) + s.oneMinusBeta2 * (g * g);
    const float denominator = sqrtf(square) * s.inverseRootCorrection + s.eps;
    parameters.item[j] = fromFloat<T>(s.decay * toFloat(parameters.item[j]) - s.stepSize * (mean / denominator));
    means.item[j] = fromFloat<T>(mean);
    squares.item[j] = fromFloat<T>(square);
  }
  storePack(a.parameter + i, parameters);
  storePack(a.m + i, means);
  storePack(a.v + i, squares);
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) narrowKernel(const float* x, T* y, float scale, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  if (i >= count) return;
  const auto wide = loadPack<kPack>(x + i);
  Pack<T, kPack> rounded;
#pragma unroll
  for (int j = 0; j < kPack; ++j) rounded.item[j] = fromFloat<T>(scale * wide.item[j]);
  storePack(y + i, rounded);
}

/// Adds the squares of a pack. Where packs are not aligned they are read by element, and the bits are the same.
template <class T>
struct SquaredPack {
  static constexpr int kPack = kWidestPack<T>;
  const T* x;
  int64_t count;
  bool isAligned;

  RLHF_DEVICE void operator()(int64_t pack, double (&sum)[1]) const {
    const int64_t first = pack * kPack;
    const auto add = [&](T value) { sum[0] += static_cast<double>(toFloat(value)) * toFloat(value); };
    if (isAligned && first + kPack <= count) {
      const auto values = loadPack<kPack>(x + first);
#pragma unroll
      for (int i = 0; i < kPack; ++i) add(values.item[i]);
    } else {
      for (int64_t i = first; i < first + kPack && i < count; ++i) add(x[i]);
    }
  }
};

}  // namespace

void adamW(OpContext& context, const AdamW& a) {
  const AdamWConstants constants = adamWConstants(a);
  dispatchType(a.type, "adamW", [&](auto zero) {
    using T = decltype(zero);
    const AdamWArrays<T> arrays{static_cast<const T*>(a.gradient), static_cast<T*>(a.parameter), static_cast<T*>(a.m),
                                static_cast<T*>(a.v)};
    launchFlat<T>(a.count, {a.gradient, a.parameter, a.m, a.v}, [&]<int kPack>(int64_t first, int64_t count) {
      const int64_t width = static_cast<int64_t>(kThreads) * kPack;
      RLHF_LAUNCH((adamWKernel<T, kPack>), dim3(static_cast<uint32_t>((count + width - 1) / width)), dim3(kThreads), 0, context.stream,
                  arrays.from(first), constants, count);
    });
  });
}

void narrow(OpContext& context, const Narrow& a) {
  dispatchType(a.type, "narrow", [&](auto zero) {
    using T = decltype(zero);
    launchFlat<float>(a.count, {a.x, a.y}, [&]<int kPack>(int64_t first, int64_t count) {
      const int64_t width = static_cast<int64_t>(kThreads) * kPack;
      RLHF_LAUNCH((narrowKernel<T, kPack>), dim3(static_cast<uint32_t>((count + width - 1) / width)), dim3(kThreads), 0, context.stream,
                  static_cast<const float*>(a.x) + first, static_cast<T*>(a.y) + first, static_cast<float>(a.scale), count);
    });
  });
}

void squaredNorm(OpContext& context, const SquaredNorm& a) {
  dispatchType(a.type, "squaredNorm", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kPack = SquaredPack<T>::kPack;
    const SquaredPack<T> each{static_cast<const T*>(a.x), a.count, canPack<T>(kPack, {}, {a.x})};
    launchSumEach<1>(context, "squaredNorm", (a.count + kPack - 1) / kPack, each, a.out);
  });
}

}  // namespace rlhf::cuda
