#pragma once
#include "ops/context.h"

namespace rlhf {

/// Inverted dropout (Srivastava et al., 2014): y = x / (1 − probability), and 0 where an element is dropped. Element (n, k) is dropped
/// where word k mod 4 of philox(seed, keys[n], layer·2³² + k div 4), as a number of 32 bits, is below probability·2³². The mask thus
/// depends on the row's key and not on its place in the batch, and the backward pass is the same op on dy.
struct Dropout {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, xStride = 0, yStride = 0;
  double probability = 0;         // 0 to below 1
  uint64_t seed = 0;
  int64_t layer = 0;              // 0 to below 2³¹: each layer has a mask of its own
  int32_t accumulate = 0;         // 1: y += instead of y =
  const int64_t* keys = nullptr;  // [N]
  const void* x = nullptr;        // [N, cols]
  void* y = nullptr;              // [N, cols], may be x itself without `accumulate`

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("xStride", xStride), f("yStride", yStride);
    f("probability", probability), f("seed", seed), f("layer", layer), f("accumulate", accumulate), f("keys", keys);
    f("x", x), f("y", y);
  }
};

}  // namespace rlhf
