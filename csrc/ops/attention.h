#pragma once
#include "ops/context.h"

namespace rlhf {

// With `compute` BF16 or BF16X3 the factors of attention's products are rounded or split as a linear layer's are (ops/linear.h): q and k,
// weights and v; backwards dO and v, weights and dO, gradients of scores and k, and these and q. The scale multiplies sums: scale·(q·k),
// scale·Σ ds·k. A forward pass's weights are exp(score − m), m being the row's largest score rounded up to a multiple of log 2, so that
// rounding does the same to them whatever multiple is taken before the largest score is known; a backward pass's are exp(score − lse).
// The weights' sum, log-sum-exp, delta and all sums keep the accumulator's type. So do products of heads narrower than 32, for which
// packing factors takes longer than multiplying them.
inline constexpr int64_t kNarrowestRoundedHead = 32;

/// What an attention op's products are computed in.
template <class Attention>
DType productsOf(const Attention& a) {
  return a.headDim < kNarrowestRoundedHead ? a.type : a.compute;
}

/// Causal attention inside each sequence of a packed batch, with grouped queries (head h reads key/value head h·G/H), in the
/// FlashAttention manner: the [length, length] scores never stand in memory (Dao et al., 2022). Tiles are cut at positions of the
/// sequence, so that a row's bits do not depend on its neighbours in the batch. With a window (Beltagy et al., 2020) the query at
/// position i of its sequence sees the keys at positions j with i − window < j ≤ i. A sequence with a parent (ops/parents.h) begins with
/// the parent's rows: its own have the positions after them, and the bits that they would have if it stood there with rows of its own.
struct AttentionForward {
  DType type = DType::F32;
  DType compute = DType::F32;          // what products of wide heads are computed in (above)
  int64_t rows = 0, sequences = 0, maxLength = 0;  // maxLength: the longest sequence
  int64_t heads = 0, kvHeads = 0, headDim = 0;
  int64_t qStride = 0, kStride = 0, vStride = 0, oStride = 0;
  int64_t window = 0;                  // keys that a query sees, its own included; 0: all before it
  double scale = 0;                    // multiplies q·k, > 0, usually D^(-1/2)
  const int32_t* offsets = nullptr;    // [S+1], offsets[0] = 0, offsets[S] = N
  const int32_t* parents = nullptr;    // [S] (optional): a sequence, or −1 for none
  const void* q = nullptr;             // [N, H, D]
  const void* k = nullptr;             // [N, G, D]
  const void* v = nullptr;             // [N, G, D]
  void* o = nullptr;                   // [N, H, D]
  void* lse = nullptr;                 // [N, H], accumulator type: log Σ exp(scale·q·k)

  template <class F> void fields(F&& f) {
    f("type", type), f("compute", compute), f("rows", rows), f("sequences", sequences), f("maxLength", maxLength), f("heads", heads);
    f("kvHeads", kvHeads), f("headDim", headDim), f("qStride", qStride), f("kStride", kStride), f("vStride", vStride);
    f("oStride", oStride), f("window", window), f("scale", scale), f("offsets", offsets), f("parents", parents);
    f("q", q), f("k", k), f("v", v), f("o", o), f("lse", lse);
  }
};

/// dq, dk and dv are overwritten; probabilities are recomputed from lse. Children add to dk and dv of their parent's rows after the
/// parent itself, in the batch's order.
struct AttentionBackward {
  DType type = DType::F32;
  DType compute = DType::F32;
  int64_t rows = 0, sequences = 0, maxLength = 0;
  int64_t heads = 0, kvHeads = 0, headDim = 0;
  int64_t qStride = 0, kStride = 0, vStride = 0, oStride = 0;  // dq, dk, dv and dO have the strides of q, k, v and o
  int64_t window = 0;
  double scale = 0;
  const int32_t* offsets = nullptr;  // [S+1]
  const int32_t* parents = nullptr;  // [S] (optional)
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* o = nullptr;           // [N, H, D]
  const void* lse = nullptr;         // [N, H]
  const void* dO = nullptr;          // [N, H, D]
  void* dq = nullptr;
  void* dk = nullptr;
  void* dv = nullptr;
  void* delta = nullptr;             // [N, H] work, accumulator type: Σ_d dO·o

  template <class F> void fields(F&& f) {
    f("type", type), f("compute", compute), f("rows", rows), f("sequences", sequences), f("maxLength", maxLength), f("heads", heads);
    f("kvHeads", kvHeads), f("headDim", headDim), f("qStride", qStride), f("kStride", kStride), f("vStride", vStride);
    f("oStride", oStride), f("window", window), f("scale", scale), f("offsets", offsets), f("parents", parents);
    f("q", q), f("k", k), f("v", v), f("o", o), f("lse", lse), f("dO", dO), f("dq", dq), f("dk", dk), f("dv", dv), f("delta", delta);
  }
};

}  // namespace rlhf
