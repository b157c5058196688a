#pragma once
#include "ops/context.h"
#include "ops/linear.h"

namespace rlhf {

/// Which of two distributions the logarithm of their ratio is averaged over.
enum class KlDirection : int32_t {
  Reverse = 0,  // KL(π‖π_ref), over what the policy would say
  Forward = 1,  // KL(π_ref‖π), over what the reference would say
};

/// The KL divergence between the next-token distributions of a policy and a reference over the whole vocabulary, both streamed: at
/// no time do logits stand in memory as a whole. The two have the same packed batch and vocabulary, and widths of their own. For
/// every prediction p let t = predictions[p] and h = sources[p]:
///   log π = x[h]·Wᵀ/temperature − lse[t],  log π_ref = refX[h]·W_refᵀ/temperature − refLse[t],
///   kl[t] = Σ_v a·(log a − log b) − a + b,  with a = π and b = π_ref, or the other way round.
/// Both sum to 1, so − a + b only takes off what rounding leaves of it: no term is negative, and an error ε of an lse moves kl by
/// ε·kl or by about ε²/2, not by ε.
struct KlDivergenceForward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, refCols = 0, vocab = 0, count = 0;  // N, C, the reference's C, V and the number of predictions
  double temperature = 1;
  KlDirection direction = KlDirection::Reverse;
  const void* x = nullptr;               // [N, C]
  const void* refX = nullptr;            // [N, refCols]
  const int32_t* predictions = nullptr;  // [count] distinct tokens
  const int32_t* sources = nullptr;      // [count] hidden rows, never falling
  LinearWeight head{};                   // [V, C], not transposed
  LinearWeight refHead{};                // [V, refCols], not transposed
  const void* lse = nullptr;             // [N], accumulator type: tokenLogProbForward's
  const void* refLse = nullptr;          // [N]
  const void* logits = nullptr;          // [count, V], accumulator type (optional): what tokenLogProbForward kept for x
  void* kl = nullptr;                    // [N], written at predicted tokens only

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("refCols", refCols), f("vocab", vocab), f("count", count);
    f("temperature", temperature), f("direction", direction), f("x", x), f("refX", refX);
    f("predictions", predictions), f("sources", sources), f("weightType", head.type), f("compute", head.compute);
    f("weight", head.data), f("packedForward", head.packedForward), f("refWeightType", refHead.type), f("refCompute", refHead.compute);
    f("refWeight", refHead.data), f("refPackedForward", refHead.packedForward), f("lse", lse), f("refLse", refLse), f("logits", logits), f("kl", kl);
  }
};

/// The reference is constant. With both lse following from the hidden rows,
///   dz = lossScale·dKl·π·(log π − log π_ref − kl)/temperature (reverse) or lossScale·dKl·(π − π_ref)/temperature (forward),
/// then dx[h] += dz·W and dW += dzᵀ·x.
struct KlDivergenceBackward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, refCols = 0, vocab = 0, count = 0;
  double temperature = 1, lossScale = 1;
  KlDirection direction = KlDirection::Reverse;
  const void* x = nullptr;
  const void* refX = nullptr;
  const int32_t* predictions = nullptr;
  const int32_t* sources = nullptr;
  LinearWeight head{};
  LinearWeight refHead{};
  const void* lse = nullptr;
  const void* refLse = nullptr;
  const void* logits = nullptr;  // [count, V] (optional), as in the forward pass; left as they are
  const void* kl = nullptr;      // [N] from the forward pass
  const void* dKl = nullptr;     // [N], read at predicted tokens only
  void* dx = nullptr;            // += [N, C]
  void* dWeight = nullptr;       // += [V, C] (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("refCols", refCols), f("vocab", vocab), f("count", count);
    f("temperature", temperature), f("lossScale", lossScale), f("direction", direction), f("x", x), f("refX", refX);
    f("predictions", predictions), f("sources", sources), f("weightType", head.type), f("compute", head.compute);
    f("weight", head.data), f("packedForward", head.packedForward), f("packedBackward", head.packedBackward);
    f("refWeightType", refHead.type), f("refCompute", refHead.compute);
    f("refWeight", refHead.data), f("refPackedForward", refHead.packedForward), f("lse", lse), f("refLse", refLse);
    f("logits", logits), f("kl", kl), f("dKl", dKl), f("dx", dx), f("dWeight", dWeight);
  }
};

}  // namespace rlhf
