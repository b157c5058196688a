#pragma once
#include "cuda/prim/platform.cuh"
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

}  // namespace rlhf::cuda
