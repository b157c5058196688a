#pragma once
#include "ops/context.h"

namespace rlhf {

/// RMSNorm: y = x · rstd · weight, rstd = (mean(x²) + eps)^(-1/2) per row. Zhang & Sennrich, 2019.
struct RmsNormForward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0;
  double eps = 1e-6;
  const void* x = nullptr;       // [rows, cols]
  const void* weight = nullptr;  // [cols]
  void* y = nullptr;             // [rows, cols]
  void* rstd = nullptr;          // [rows], accumulator type

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("eps", eps);
    f("x", x), f("weight", weight), f("y", y), f("rstd", rstd);
  }
};

struct RmsNormBackward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0;
  int32_t accumulateDx = 0;      // 1: dx += (the residual branch's gradient is already there)
  const void* x = nullptr;       // [rows, cols]
  const void* weight = nullptr;  // [cols]
  const void* rstd = nullptr;    // [rows]
  const void* dy = nullptr;      // [rows, cols]
  void* dx = nullptr;            // [rows, cols]
  void* dWeight = nullptr;       // += [cols] (optional), rows summed in a fixed order

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("accumulateDx", accumulateDx), f("x", x), f("weight", weight);
    f("rstd", rstd), f("dy", dy), f("dx", dx), f("dWeight", dWeight);
  }
};

/// LayerNorm: y = (x − mean) · rstd · weight + bias, rstd = (var(x) + eps)^(-1/2) per row, biased variance. Ba et al., 2016.
struct LayerNormForward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0;
  double eps = 1e-5;
  const void* x = nullptr;       // [rows, cols]
  const void* weight = nullptr;  // [cols]
  const void* bias = nullptr;    // [cols]
  void* y = nullptr;             // [rows, cols]
  void* mean = nullptr;          // [rows], accumulator type
  void* rstd = nullptr;          // [rows], accumulator type

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("eps", eps), f("x", x), f("weight", weight), f("bias", bias);
    f("y", y), f("mean", mean), f("rstd", rstd);
  }
};

struct LayerNormBackward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0;
  int32_t accumulateDx = 0;
  const void* x = nullptr;       // [rows, cols]
  const void* weight = nullptr;  // [cols]
  const void* mean = nullptr;    // [rows]
  const void* rstd = nullptr;    // [rows]
  const void* dy = nullptr;      // [rows, cols]
  void* dx = nullptr;            // [rows, cols]
  void* dWeight = nullptr;       // += [cols] (optional)
  void* dBias = nullptr;         // += [cols] (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("accumulateDx", accumulateDx), f("x", x), f("weight", weight);
    f("mean", mean), f("rstd", rstd), f("dy", dy), f("dx", dx), f("dWeight", dWeight), f("dBias", dBias);
  }
};

/// RMSNorm of every head of a row, in place (Qwen3's queries and keys): with rstd = (mean(x²) + eps)^(-1/2) per head,
/// normalised = x · rstd and x = normalised · weight.
struct HeadNormForward {
  DType type = DType::F32;
  int64_t rows = 0, heads = 0, headDim = 0, stride = 0;
  double eps = 1e-6;
  const void* weight = nullptr;  // [D], shared by all heads
  void* x = nullptr;             // [rows, heads, D], rows `stride` elements apart
  void* normalised = nullptr;    // [rows, heads, D], contiguous (optional): what the backward pass needs, like rstd
  void* rstd = nullptr;          // [rows, heads], accumulator type (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("heads", heads), f("headDim", headDim), f("stride", stride), f("eps", eps);
    f("weight", weight), f("x", x), f("normalised", normalised), f("rstd", rstd);
  }
};

/// The gradient of x before the norm takes the place of that after it.
struct HeadNormBackward {
  DType type = DType::F32;
  int64_t rows = 0, heads = 0, headDim = 0, stride = 0;
  const void* weight = nullptr;      // [D]
  const void* normalised = nullptr;  // [rows, heads, D]
  const void* rstd = nullptr;        // [rows, heads]
  void* dx = nullptr;                // [rows, heads, D], rows `stride` elements apart
  void* dWeight = nullptr;           // += [D] (optional), rows summed in a fixed order

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("heads", heads), f("headDim", headDim), f("stride", stride), f("weight", weight);
    f("normalised", normalised), f("rstd", rstd), f("dx", dx), f("dWeight", dWeight);
  }
};

}  // namespace rlhf
