#pragma once
#include "ops/context.h"

namespace rlhf {

/// Rotary position embedding in place: the pair (x[i], x[i + rotary/2]) of each head turns by the angle of its position.
/// The first `rotary` of `headDim` elements take part (Su et al., 2021; halves as in transformers' rotate_half).
/// The backward pass is the same op with inverse = 1.
struct Rotary {
  DType type = DType::F32;
  int64_t rows = 0, heads = 0, headDim = 0, rotary = 0, rowStride = 0, maxPositions = 0;
  int32_t inverse = 0;
  const int32_t* positions = nullptr;  // [N]
  const void* cosine = nullptr;        // [maxPositions, rotary/2], accumulator type
  const void* sine = nullptr;          // [maxPositions, rotary/2], accumulator type
  void* x = nullptr;                   // [N, heads, headDim], rows `rowStride` elements apart

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("heads", heads), f("headDim", headDim), f("rotary", rotary);
    f("rowStride", rowStride), f("maxPositions", maxPositions), f("inverse", inverse);
    f("positions", positions), f("cosine", cosine), f("sine", sine), f("x", x);
  }
};

}  // namespace rlhf
