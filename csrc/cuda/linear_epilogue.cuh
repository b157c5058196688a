#pragma once
#include "cuda/activate.cuh"
#include "cuda/matmul.cuh"

namespace rlhf::cuda {

/// y = activation(D + bias) + residual.
template <class T>
struct LinearEpilogue {
  const T* bias;
  const T* residual;
  T* preActivation;
  void* y;    // of float where it is wide, else of T
  bool wide;
  int64_t stride;
  Activation activation;

  bool takesPacks(int64_t cols) const {
    return cols % 4 == 0 && stride % 4 == 0 && isPackAligned(bias) && isPackAligned(residual) && isPackAligned(preActivation) &&
           (wide ? isPackAligned(static_cast<float*>(y)) : isPackAligned(static_cast<T*>(y)));
  }

  template <int kCount>
  RLHF_DEVICE void storePack(int64_t row, int64_t col, Pack<float, kCount> sum) const {
    const int64_t at = row * stride + col;
    if (bias) addPack(sum, bias + col);
    if (preActivation) writePack(preActivation + at, sum);
#pragma unroll
    for (float& each : sum.item) each = activate(activation, each);
    if (residual) addPack(sum, residual + at);
    if (wide) {
      writePack(static_cast<float*>(y) + at, sum);
    } else {
      writePack(static_cast<T*>(y) + at, sum);
    }
  }
};

}  // namespace rlhf::cuda
