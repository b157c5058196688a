#pragma once
#include "ops/context.h"

namespace rlhf {

/// y = scale · x rounded to `type`, to the nearest and ties to even: numbers that sums are kept in, for products of `type`. What is over
/// its range becomes infinite.
struct Narrow {
  DType type = DType::F32;
  int64_t count = 0;
  double scale = 1;
  const void* x = nullptr;  // [count], accumulator type
  void* y = nullptr;        // [count], may be x where the types are the same

  template <class F> void fields(F&& f) { f("type", type), f("count", count), f("scale", scale), f("x", x), f("y", y); }
};

}  // namespace rlhf
