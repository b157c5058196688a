// AdamW, rounding and the norm of gradients over flat arrays, a thread per pack.

#include <type_traits>

#include "core/stochastic_rounding.h"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "cuda/sums.cuh"
#include "ops/optimizer.h"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 256;

/// W is the type of the weights that are updated, T that of their copy.
template <class W, class T>
struct AdamWArrays {
  const float* gradient;
  W* weight;
  T* copy;
  float* m;
  float* v;
};

template <class W, class T, bool kCopies, int kPack>
__global__ void __launch_bounds__(kThreads)
    adamWKernel(const __grid_constant__ AdamWArrays<W, T> a, const __grid_constant__ AdamWConstants s, uint64_t seed, uint64_t step,
                int64_t first, int64_t count) {
  constexpr bool kRounds = !std::is_same_v<W, float>;
  const int64_t i = first + (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  if (i >= first + count) return;
  const auto gradients = loadPack<kPack>(a.gradient + i);
  auto weights = loadPack<kPack>(a.weight + i);
  auto means = loadPack<kPack>(a.m + i), squares = loadPack<kPack>(a.v + i);
  Pack<T, kPack> copies;
  PhiloxBlock random;
  if constexpr (kRounds) random = roundingBits(seed, step, static_cast<uint64_t>(i) / 8);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    const float g = s.gradientScale * gradients.item[j];
    const float mean = s.beta1 * means.item[j] + s.oneMinusBeta1 * g;
    const float square = s.beta2 * squares.item[j] + s.oneMinusBeta2 * (g * g);
    const float denominator = sqrtf(square) * s.inverseRootCorrection + s.eps;
    float weight = s.decay * toFloat(weights.item[j]) - s.stepSize * (mean / denominator);
    if constexpr (kRounds) weight = floatOf(stochasticallyRounded(bitsOf(weight), roundingNoise(random, static_cast<int>(i % 8) + j)));
    weights.item[j] = fromFloat<W>(weight);
    means.item[j] = mean;
    squares.item[j] = square;
    if constexpr (kCopies) copies.item[j] = fromFloat<T>(weight);
  }
  storePack(a.weight + i, weights);
  storePack(a.m + i, means);
  storePack(a.v + i, squares);
  if constexpr (kCopies) storePack(a.copy + i, copies);
}

template <class W, class T, bool kCopies>
void runAdamW(OpContext& context, const AdamW& a) {
  const AdamWConstants constants = adamWConstants(a);
  void* const weight = kCopies ? a.master : a.parameter;
  const AdamWArrays<W, T> arrays{static_cast<const float*>(a.gradient), static_cast<W*>(weight), static_cast<T*>(a.parameter),
                                 static_cast<float*>(a.m), static_cast<float*>(a.v)};
  launchFlat<float>(a.count, {a.gradient, a.parameter, weight, a.m, a.v}, [&]<int kPack>(int64_t first, int64_t count) {
    const int64_t width = static_cast<int64_t>(kThreads) * kPack;
    RLHF_LAUNCH((adamWKernel<W, T, kCopies, kPack>), dim3(static_cast<uint32_t>((count + width - 1) / width)), dim3(kThreads), 0,
                context.stream, arrays, constants, a.seed, static_cast<uint64_t>(a.step), first, count);
  });
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
  requireFloatSums(a.type, "adamW");
  if (a.type == DType::BF16 && !a.master) return runAdamW<bf16, bf16, false>(context, a);
  if (!a.master) return runAdamW<float, float, false>(context, a);
  dispatchType(a.type, "adamW", [&](auto zero) { runAdamW<float, decltype(zero), true>(context, a); });
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
