// Dropout: a thread for four columns of a row, which one block of random words decides about.

#include <cmath>

#include "core/philox.h"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/launch.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWords = 4;  // of one block of random numbers

template <class T>
struct DropoutArrays {
  const int64_t* keys;
  const T* x;
  T* y;
  int64_t xStride, yStride, cols;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropoutKernel(DropoutArrays<T> arrays, uint64_t seed, uint64_t layer, uint64_t threshold, float kept, bool accumulate) {
  const int64_t row = blockIdx.x;
  const int64_t group = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const PhiloxBlock random = philox(seed, static_cast<uint64_t>(arrays.keys[row]), (layer << 32) + static_cast<uint64_t>(group));
#pragma unroll
  for (int word = 0; word < kWords; ++word) {
    const int64_t col = group * kWords + word;
    if (col >= arrays.cols) return;
    const float value = random.word[word] < threshold ? 0.0f : toFloat(arrays.x[row * arrays.xStride + col]) * kept;
    T& y = arrays.y[row * arrays.yStride + col];
    y = fromFloat<T>(accumulate ? toFloat(y) + value : value);
  }
}

}  // namespace

void dropout(OpContext& context, const Dropout& a) {
  const uint64_t threshold = static_cast<uint64_t>(std::ceil(a.probability * 0x1p32));
  const float kept = static_cast<float>(1 / (1 - a.probability));
  constexpr int64_t kColsPerBlock = kThreads * kWords;
  const dim3 grid(static_cast<uint32_t>(a.rows), static_cast<uint32_t>((a.cols + kColsPerBlock - 1) / kColsPerBlock));
  dispatchType(a.type, "dropout", [&](auto zero) {
    using T = decltype(zero);
    const DropoutArrays<T> arrays{a.keys, static_cast<const T*>(a.x), static_cast<T*>(a.y), a.xStride, a.yStride, a.cols};
    RLHF_LAUNCH(dropoutKernel<T>, grid, dim3(kThreads), 0, context.stream, arrays, a.seed, static_cast<uint64_t>(a.layer),
                threshold, kept, a.accumulate != 0);
  });
}

}  // namespace rlhf::cuda
