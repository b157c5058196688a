#pragma once
#include "cuda/matmul.cuh"
#include "ops/activation.h"

namespace rlhf::cuda {

RLHF_DEVICE float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::None: return x;
    case Activation::GeluTanh: return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case Activation::GeluErf: return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
    case Activation::Tanh: return tanhf(x);
    case Activation::Relu: return x > 0 ? x : (x == x ? 0.0f : x);  // NaN stays NaN
    case Activation::Silu: return x / (1.0f + expf(-x));
  }
  return x;
}

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
