#pragma once
#include "ops/context.h"

namespace rlhf {

enum class Activation : int32_t {
  None = 0,
  GeluTanh = 1,  // 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))): gelu_new, gelu_pytorch_tanh
  GeluErf = 2,   // 0.5·x·(1 + erf(x/√2)): gelu
  Tanh = 3,
  Relu = 4,
  Silu = 5,      // x·σ(x)
};

/// y = activation(x), bit for bit what LinearForward makes of the same numbers where the two have the accumulator's type: that is
/// given the unrounded ones.
struct ActivationForward {
  DType type = DType::F32;
  Activation activation = Activation::None;
  int64_t count = 0;
  const void* x = nullptr;  // [count]
  void* y = nullptr;        // [count]

  template <class F> void fields(F&& f) {
    f("type", type), f("activation", activation), f("count", count), f("x", x), f("y", y);
  }
};

/// dx = dy · activation'(x), x being what the activation was applied to. dx may be dy. With y also what ActivationForward makes of x.
struct ActivationBackward {
  DType type = DType::F32;
  Activation activation = Activation::None;
  int64_t count = 0;
  const void* x = nullptr;   // [count]
  const void* dy = nullptr;  // [count]
  void* dx = nullptr;        // [count]
  void* y = nullptr;         // [count] (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("activation", activation), f("count", count), f("x", x), f("dy", dy), f("dx", dx);
    f("y", y);
  }
};

/// y = silu(gate) · up (SwiGLU, Shazeer 2020). gate and up are column blocks of wider rows: rows `inputStride` apart.
struct GatedSiluForward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, inputStride = 0;
  const void* gate = nullptr;  // [rows, cols]
  const void* up = nullptr;    // [rows, cols]
  void* y = nullptr;           // [rows, cols], contiguous

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("inputStride", inputStride), f("gate", gate), f("up", up);
    f("y", y);
  }
};

/// The gradients of both factors, and with y also what GatedSiluForward makes of them.
struct GatedSiluBackward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, inputStride = 0;
  const void* gate = nullptr;  // [rows, cols], rows inputStride apart
  const void* up = nullptr;
  const void* dy = nullptr;    // [rows, cols], contiguous
  void* dGate = nullptr;       // [rows, cols], rows inputStride apart; may be gate
  void* dUp = nullptr;         // may be up
  void* y = nullptr;           // [rows, cols], contiguous (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("inputStride", inputStride), f("gate", gate), f("up", up);
    f("dy", dy), f("dGate", dGate), f("dUp", dUp), f("y", y);
  }
};

}  // namespace rlhf
