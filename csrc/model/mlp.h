#pragma once
#include <vector>

#include "model/engine.h"

namespace rlhf {

/// A multi-layer perceptron: x → act(W₁x + b₁) → … → Wₙh + bₙ, of widths sizes[0] (inputs) to sizes[n] (outputs). It has no state:
/// parameters are one flat array, layer by layer W [out, in] row-major, then b [out], and so is their gradient.
struct MlpShape {
  std::vector<int64_t> sizes;
  Activation activation = Activation::Tanh;

  /// Throws ERR_RLHF_ARGUMENT unless there are at least two sizes, all of 1 to 2²⁰.
  void validate() const;
  int64_t layers() const { return static_cast<int64_t>(sizes.size()) - 1; }
  int64_t inputs() const { return sizes.front(); }
  int64_t outputs() const { return sizes.back(); }
  int64_t parameterCount() const;
  /// Elements per row that forward keeps for backward: of each hidden layer what its activation was applied to, and the result.
  int64_t keptPerRow() const;
  /// Elements per row that backward works in.
  int64_t workPerRow() const;
};

/// y [N, outputs] from x [N, inputs]; `kept` [N·keptPerRow] is for backward.
void mlpForward(Engine& engine, const MlpShape& shape, int64_t rows, const void* x, const void* parameters, void* kept, void* y);

/// Overwrites `gradient` [parameterCount] and, unless it is null, dx [N, inputs]. `work` has N·workPerRow elements. Engines of a type
/// narrower than its accumulator are ERR_RLHF_UNSUPPORTED.
void mlpBackward(Engine& engine, const MlpShape& shape, int64_t rows, const void* x, const void* parameters, const void* kept,
                 const void* dy, void* work, void* gradient, void* dx);

}  // namespace rlhf
