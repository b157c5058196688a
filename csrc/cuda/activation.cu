// Activations by themselves, their backward, and gated SiLU: elementwise, a thread per pack.

#include "cuda/activate.cuh"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/launch.cuh"
#include "cuda/rows.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 256;

RLHF_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

RLHF_DEVICE float siluSlope(float x) {
  const float s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

/// activation'(x); 0 for Relu at 0.
RLHF_DEVICE float activationSlope(Activation activation, float x) {
  switch (activation) {
    case Activation::None: return 1.0f;
    case Activation::GeluTanh: {
      const float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3 * 0.044715f * x * x);
    }
    case Activation::GeluErf: return 0.5f * (1.0f + erff(x * 0.7071067812f)) + x * 0.3989422804f * expf(-0.5f * x * x);
    case Activation::Tanh: {
      const float t = tanhf(x);
      return 1.0f - t * t;
    }
    case Activation::Relu: return x > 0 ? 1.0f : 0.0f;
    case Activation::Silu: return siluSlope(x);
  }
  return 1.0f;
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) activationForwardKernel(Activation activation, const T* x, T* y, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  if (i >= count) return;
  auto values = loadPack<kPack>(x + i);
#pragma unroll
  for (int j = 0; j < kPack; ++j) values.item[j] = fromFloat<T>(activate(activation, toFloat(values.item[j])));
  storePack(y + i, values);
}

/// dx may be dy; y may be null.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    activationBackwardKernel(Activation activation, const T* x, const T* dy, T* dx, T* y, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  if (i >= count) return;
  auto inputs = loadPack<kPack>(x + i);
  auto gradients = loadPack<kPack>(dy + i);
#pragma unroll
  for (int j = 0; j < kPack; ++j)
    gradients.item[j] = fromFloat<T>(toFloat(gradients.item[j]) * activationSlope(activation, toFloat(inputs.item[j])));
  storePack(dx + i, gradients);
  if (!y) return;
#pragma unroll
  for (int j = 0; j < kPack; ++j) inputs.item[j] = fromFloat<T>(activate(activation, toFloat(inputs.item[j])));
  storePack(y + i, inputs);
}

/// A block per row and kThreads packs of its columns.
dim3 gatedGrid(int64_t rows, int64_t cols, int pack) {
  const int64_t width = static_cast<int64_t>(kThreads) * pack;
  return dim3(static_cast<uint32_t>(rows), static_cast<uint32_t>((cols + width - 1) / width));
}

template <int kPack>
RLHF_DEVICE int64_t gatedColumn() {
  return (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kPack;
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) gatedSiluForwardKernel(const __grid_constant__ GatedSiluForward a) {
  const int64_t col = gatedColumn<kPack>();
  if (col >= a.cols) return;
  const int64_t at = blockIdx.x * a.inputStride + col;
  const auto gates = loadPack<kPack>(static_cast<const T*>(a.gate) + at), ups = loadPack<kPack>(static_cast<const T*>(a.up) + at);
  Pack<T, kPack> result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float gate = toFloat(gates.item[i]);
    result.item[i] = fromFloat<T>(gate * sigmoid(gate) * toFloat(ups.item[i]));
  }
  storePack(static_cast<T*>(a.y) + blockIdx.x * a.cols + col, result);
}

/// dGate may be gate, and dUp up; y may be null.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads) gatedSiluBackwardKernel(const __grid_constant__ GatedSiluBackward a) {
  const int64_t col = gatedColumn<kPack>();
  if (col >= a.cols) return;
  const int64_t at = blockIdx.x * a.inputStride + col;
  auto gates = loadPack<kPack>(static_cast<const T*>(a.gate) + at), ups = loadPack<kPack>(static_cast<const T*>(a.up) + at);
  auto gradients = loadPack<kPack>(static_cast<const T*>(a.dy) + blockIdx.x * a.cols + col);
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float gate = toFloat(gates.item[i]), up = toFloat(ups.item[i]), dy = toFloat(gradients.item[i]);
    gates.item[i] = fromFloat<T>(dy * up * siluSlope(gate));
    ups.item[i] = fromFloat<T>(dy * gate * sigmoid(gate));
    gradients.item[i] = fromFloat<T>(gate * sigmoid(gate) * up);
  }
  storePack(static_cast<T*>(a.dGate) + at, gates);
  storePack(static_cast<T*>(a.dUp) + at, ups);
  if (a.y) storePack(static_cast<T*>(a.y) + blockIdx.x * a.cols + col, gradients);
}

}  // namespace

void activationForward(OpContext& context, const ActivationForward& a) {
  dispatchType(a.type, "activationForward", [&](auto zero) {
    using T = decltype(zero);
    const auto* x = static_cast<const T*>(a.x);
    auto* y = static_cast<T*>(a.y);
    launchFlat<T>(a.count, {x, y}, [&]<int kPack>(int64_t first, int64_t count) {
      const int64_t width = static_cast<int64_t>(kThreads) * kPack;
      RLHF_LAUNCH((activationForwardKernel<T, kPack>), dim3(static_cast<uint32_t>((count + width - 1) / width)), dim3(kThreads), 0,
                  context.stream, a.activation, x + first, y + first, count);
    });
  });
}

void activationBackward(OpContext& context, const ActivationBackward& a) {
  dispatchType(a.type, "activationBackward", [&](auto zero) {
    using T = decltype(zero);
    const auto* x = static_cast<const T*>(a.x);
    const auto* dy = static_cast<const T*>(a.dy);
    auto* dx = static_cast<T*>(a.dx);
    auto* y = static_cast<T*>(a.y);
    launchFlat<T>(a.count, {x, dy, dx, y}, [&]<int kPack>(int64_t first, int64_t count) {
      const int64_t width = static_cast<int64_t>(kThreads) * kPack;
      RLHF_LAUNCH((activationBackwardKernel<T, kPack>), dim3(static_cast<uint32_t>((count + width - 1) / width)), dim3(kThreads), 0,
                  context.stream, a.activation, x + first, dy + first, dx + first, y ? y + first : nullptr, count);
    });
  });
}

void gatedSiluForward(OpContext& context, const GatedSiluForward& a) {
  dispatchType(a.type, "gatedSiluForward", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kPack = kWidestPack<T>;
    const bool packs = canPack<T>(kPack, {a.cols, a.inputStride}, {a.gate, a.up, a.y});
    const auto kernel = packs ? gatedSiluForwardKernel<T, kPack> : gatedSiluForwardKernel<T, 1>;
    RLHF_LAUNCH(kernel, gatedGrid(a.rows, a.cols, packs ? kPack : 1), dim3(kThreads), 0, context.stream, a);
  });
}

void gatedSiluBackward(OpContext& context, const GatedSiluBackward& a) {
  dispatchType(a.type, "gatedSiluBackward", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kPack = kWidestPack<T>;
    const bool packs = canPack<T>(kPack, {a.cols, a.inputStride}, {a.gate, a.up, a.dy, a.dGate, a.dUp, a.y});
    const auto kernel = packs ? gatedSiluBackwardKernel<T, kPack> : gatedSiluBackwardKernel<T, 1>;
    RLHF_LAUNCH(kernel, gatedGrid(a.rows, a.cols, packs ? kPack : 1), dim3(kThreads), 0, context.stream, a);
  });
}

}  // namespace rlhf::cuda
