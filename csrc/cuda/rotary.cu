// Rotary position embedding in place: a block per row, a thread per pack of pairs.

#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/launch.cuh"
#include "cuda/rows.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPairPack = 4;

template <class T>
struct RotaryArrays {
  const int32_t* positions;
  const float* cosine;
  const float* sine;
  T* x;
  int64_t heads, headDim, half, rowStride, maxPositions;
  bool inverse;
};

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) rotaryKernel(const __grid_constant__ RotaryArrays<T> a) {
  const int64_t row = blockIdx.x, position = a.positions[row];
  const bool isKnown = position >= 0 && position < a.maxPositions;
  const int packs = static_cast<int>(a.half / kPack), count = static_cast<int>(a.heads) * packs;
  for (int index = static_cast<int>(threadIdx.x); index < count; index += kThreads) {
    const int64_t pair = static_cast<int64_t>(index % packs) * kPack;
    T* const x = a.x + row * a.rowStride + index / packs * a.headDim + pair;
    auto first = loadPack<kPack>(x), second = loadPack<kPack>(x + a.half);
    Pack<float, kPack> cosine = {}, sine = {};
    if (isKnown) {
      cosine = loadPack<kPack>(a.cosine + position * a.half + pair);
      sine = loadPack<kPack>(a.sine + position * a.half + pair);
    }
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float c = isKnown ? cosine.item[i] : NAN, s = isKnown ? (a.inverse ? -sine.item[i] : sine.item[i]) : NAN;
      const float u = toFloat(first.item[i]), v = toFloat(second.item[i]);
      first.item[i] = fromFloat<T>(u * c - v * s);
      second.item[i] = fromFloat<T>(v * c + u * s);
    }
    storePack(x, first);
    storePack(x + a.half, second);
  }
}

}  // namespace

void rotary(OpContext& context, const Rotary& a) {
  dispatchType(a.type, "rotary", [&](auto zero) {
    using T = decltype(zero);
    const int64_t half = a.rotary / 2;
    const RotaryArrays<T> arrays{a.positions, static_cast<const float*>(a.cosine), static_cast<const float*>(a.sine), static_cast<T*>(a.x),
                                 a.heads, a.headDim, half, a.rowStride, a.maxPositions, a.inverse != 0};
    const bool packs = canPack<T>(kPairPack, {half, a.headDim, a.rowStride}, {a.x}) &&
                       canPack<float>(kPairPack, {half}, {a.cosine, a.sine});
    const auto kernel = packs ? rotaryKernel<T, kPairPack> : rotaryKernel<T, 1>;
    RLHF_LAUNCH(kernel, dim3(static_cast<uint32_t>(a.rows)), dim3(kThreads), 0, context.stream, arrays);
  });
}

}  // namespace rlhf::cuda
