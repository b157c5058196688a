#pragma once
#include "ops/context.h"
#include "ops/linear.h"

namespace rlhf {

/// Statistics of the next-token distribution, streamed over the vocabulary: logits never stand in memory as a whole unless
/// `logits` asks to keep them. For every prediction p let t = predictions[p] and h = sources[p]; token t is predicted from hidden row h:
///   z = x[h]·Wᵀ / temperature,  lse = log Σ exp z,  logProb = z[tokens[t]] − lse,  entropy = lse − Σ softmax(z)·z.
/// Outputs are written at index t of arrays of N; the caller zeroes what is not predicted.
struct TokenLogProbForward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, vocab = 0, count = 0;  // N, C, V and the number of predictions
  double temperature = 1;
  const void* x = nullptr;               // [N, C]
  const int32_t* tokens = nullptr;       // [N]
  const int32_t* predictions = nullptr;  // [count] distinct tokens
  const int32_t* sources = nullptr;      // [count] hidden rows, never falling: what one row predicts stands side by side
  LinearWeight head{};                   // [V, C], not transposed
  void* logProb = nullptr;               // [N], accumulator type
  void* lse = nullptr;                   // [N]
  void* entropy = nullptr;               // [N]
  void* logits = nullptr;                // [count, V], accumulator type (optional): keeps z for the backward pass

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("vocab", vocab), f("count", count);
    f("temperature", temperature), f("x", x), f("tokens", tokens), f("predictions", predictions);
    f("sources", sources), f("weightType", head.type), f("compute", head.compute), f("weight", head.data), f("packedForward", head.packedForward);
    f("logProb", logProb), f("lse", lse), f("entropy", entropy), f("logits", logits);
  }
};

/// dz = lossScale · [dLogProb·(1_token − p) + dLse·p − dEntropy·p·(log p + entropy)] / temperature, then dx[h] += dz·W and dW += dzᵀ·x.
/// The scale is what keeps gradients in float16 from vanishing (Micikevicius et al., 2018).
struct TokenLogProbBackward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, vocab = 0, count = 0;
  double temperature = 1, lossScale = 1;
  const void* x = nullptr;
  const int32_t* tokens = nullptr;
  const int32_t* predictions = nullptr;
  const int32_t* sources = nullptr;
  LinearWeight head{};
  const void* lse = nullptr;       // [N] from the forward pass
  const void* entropy = nullptr;   // [N] from the forward pass
  const void* dLogProb = nullptr;  // [N] (optional), read at predicted tokens only
  const void* dLse = nullptr;      // [N] (optional)
  const void* dEntropy = nullptr;  // [N] (optional)
  void* logits = nullptr;          // [count, V] (optional): z kept by the forward pass; its contents are used up
  void* dx = nullptr;              // += [N, C]
  void* dWeight = nullptr;         // += [V, C] (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("vocab", vocab), f("count", count);
    f("temperature", temperature), f("lossScale", lossScale), f("x", x), f("tokens", tokens), f("predictions", predictions);
    f("sources", sources), f("weightType", head.type), f("compute", head.compute), f("weight", head.data), f("packedForward", head.packedForward);
    f("packedBackward", head.packedBackward), f("lse", lse), f("entropy", entropy), f("dLogProb", dLogProb);
    f("dLse", dLse), f("dEntropy", dEntropy), f("logits", logits), f("dx", dx), f("dWeight", dWeight);
  }
};

}  // namespace rlhf
