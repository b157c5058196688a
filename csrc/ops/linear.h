#pragma once
#include "ops/activation.h"
#include "ops/context.h"

namespace rlhf {

/// A weight matrix W [M outputs, K inputs] of a linear layer. In memory it is row-major [M, K], or [K, M] when `transposed`
/// (GPT-2's Conv1D). A frozen weight may carry its packed forms, made once by `packWeight`; they must match `data`.
struct LinearWeight {
  DType type = DType::F32;
  DType compute = DType::F32;  // what products are computed in: float32, bfloat16 or bfloat16x3 (below)
  int32_t transposed = 0;
  const void* data = nullptr;
  const void* packedForward = nullptr;   // (optional) for y = x·Wᵀ; where it is float32 and all that there is, for dx as well
  const void* packedBackward = nullptr;  // (optional) for dx = dy·W
};

/// A low-rank update of the layer: W + scale · B·A (Hu et al., 2021). scale is α/r.
struct LoraFactors {
  int64_t rank = 0;         // 0: no adapter
  double scale = 0;
  const void* a = nullptr;  // [R, K]
  const void* b = nullptr;  // [M, R]
};

// With `compute` BF16 both factors of every matrix product of the layer, forward, backward and the adapter's, are rounded to the
// nearest bfloat16 (ties to even) before they are multiplied: scale·(u·Aᵀ) and Bᵀ, scale·(dy·B) and A, dy and x. Sums, and all that
// is not a matrix product, keep the accumulator's type. With BF16X3 they are split instead, into the nearest bfloat16 and the one nearest to
// what that leaves, and of the parts' four products all but that of the two rests are summed: an error of up to 2⁻¹⁶ of |x·w| in place of
// 2⁻⁸ (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019).
// With any other `compute` products are computed in the accumulator's type too: in float32 as multiply-adds, or, where a processor is faster at it,
// from numbers cut into three of bfloat16 whose sum they are, with an error no larger than that of multiply-adds.

/// y = activation(x·Wᵀ + bias + scale·(u·Aᵀ)·Bᵀ) + residual, where u is loraInput, or x without one. Each row of y depends on its row of x alone, bit for bit: not on N,
/// not on the number of threads.
struct LinearForward {
  DType type = DType::F32;
  int64_t rows = 0, inputs = 0, outputs = 0;
  int64_t xStride = 0, yStride = 0;   // elements from one row to the next
  Activation activation = Activation::None;
  int32_t decoding = 0;               // 1: a step of decoding, few rows, for which reading W sets the pace; sums in float32 may be rounded otherwise than with 0
  int32_t wideOutput = 0;             // 1: y is not rounded to `type`, it has the accumulator type (no residual, no preActivation)
  const void* x = nullptr;            // [N, K]
  LinearWeight weight{};
  const void* bias = nullptr;         // [M] (optional)
  LoraFactors lora{};
  const void* loraInput = nullptr;    // [N, K] (optional): x after the adapter's dropout, rows K apart
  void* loraHidden = nullptr;         // [N, R] out: u·Aᵀ, needed with an adapter and by the backward pass
  const void* residual = nullptr;     // [N, M] (optional), rows yStride apart; may be y itself
  void* preActivation = nullptr;      // [N, M] (optional), rows yStride apart: what the activation was applied to
  void* y = nullptr;                  // [N, M]

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("inputs", inputs), f("outputs", outputs), f("xStride", xStride);
    f("yStride", yStride), f("activation", activation), f("decoding", decoding), f("wideOutput", wideOutput), f("x", x), f("weightType", weight.type), f("compute", weight.compute);
    f("transposed", weight.transposed), f("weight", weight.data), f("packedForward", weight.packedForward);
    f("bias", bias), f("rank", lora.rank), f("scale", lora.scale), f("loraA", lora.a), f("loraB", lora.b);
    f("loraInput", loraInput), f("loraHidden", loraHidden), f("residual", residual), f("preActivation", preActivation), f("y", y);
  }
};

/// Gradients of x·Wᵀ + bias + scale·(u·Aᵀ)·Bᵀ; the activation's own backward is ActivationBackward.
///   g = scale·dy·B,  dx = dy·W + g·A,  dW = dyᵀ·x,  dBias = Σ dy,  dA = gᵀ·u,  dB = scale·dyᵀ·loraHidden
/// With dLoraInput, g·A goes there and not into dx: the gradient of u, which Dropout takes back to x.
struct LinearBackward {
  DType type = DType::F32;
  int64_t rows = 0, inputs = 0, outputs = 0;
  int64_t xStride = 0, dyStride = 0, dxStride = 0;
  int32_t accumulateDx = 0;
  const void* x = nullptr;           // [N, K]
  const void* dy = nullptr;          // [N, M]
  LinearWeight weight{};
  LoraFactors lora{};
  const void* loraInput = nullptr;   // [N, K] (optional): u, as in the forward pass
  const void* loraHidden = nullptr;  // [N, R] from the forward pass
  void* loraGradient = nullptr;      // [N, R] work: g
  void* dx = nullptr;                // [N, K] (optional)
  void* dLoraInput = nullptr;        // [N, K] (optional), rows K apart
  void* dWeight = nullptr;           // += laid out as weight.data (optional)
  void* dBias = nullptr;             // += [M] (optional)
  void* dA = nullptr;                // += [R, K] (optional)
  void* dB = nullptr;                // += [M, R] (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("inputs", inputs), f("outputs", outputs), f("xStride", xStride);
    f("dyStride", dyStride), f("dxStride", dxStride), f("accumulateDx", accumulateDx), f("x", x), f("dy", dy);
    f("weightType", weight.type), f("compute", weight.compute), f("transposed", weight.transposed), f("weight", weight.data);
    f("packedForward", weight.packedForward), f("packedBackward", weight.packedBackward), f("rank", lora.rank), f("scale", lora.scale), f("loraA", lora.a);
    f("loraB", lora.b), f("loraInput", loraInput), f("loraHidden", loraHidden), f("loraGradient", loraGradient);
    f("dx", dx), f("dLoraInput", dLoraInput), f("dWeight", dWeight), f("dBias", dBias), f("dA", dA), f("dB", dB);
  }
};

/// Reorders a frozen weight into the layout that the backend's matrix product streams, rounded to `compute`. Ops::packedWeightBytes gives the size
/// (0: this backend has no packed form).
struct PackWeight {
  DType type = DType::F32;
  DType compute = DType::F32;
  int64_t inputs = 0, outputs = 0;
  int32_t transposed = 0;
  int32_t backward = 0;        // 0: for y = x·Wᵀ, 1: for dx = dy·W
  const void* weight = nullptr;
  void* packed = nullptr;

  template <class F> void fields(F&& f) {
    f("type", type), f("compute", compute), f("inputs", inputs), f("outputs", outputs), f("transposed", transposed);
    f("backward", backward), f("weight", weight), f("packed", packed);
  }
};

/// The other way round: a weight whose products are computed in its own type, from its form for y = x·Wᵀ. Packing only moved its
/// numbers, so every bit comes back.
struct UnpackWeight {
  DType type = DType::F32;     // of the weight and of its products
  int64_t inputs = 0, outputs = 0;
  int32_t transposed = 0;
  const void* packed = nullptr;
  void* weight = nullptr;

  template <class F> void fields(F&& f) {
    f("type", type), f("inputs", inputs), f("outputs", outputs), f("transposed", transposed), f("packed", packed), f("weight", weight);
  }
};

}  // namespace rlhf
