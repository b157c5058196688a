#pragma once
#include "ops/context.h"

namespace rlhf {

// Shape letters here and in all op headers: N tokens of a packed batch, S sequences, C hidden width, V vocabulary, H query
// heads, G key/value heads, D head width, R LoRA rank, K inputs and M outputs of a linear layer, B sequences being decoded.
// `type` is the type of activations and parameters; statistics and gradients of parameters have accumulatorType(type).
// Outputs marked += accumulate; all other outputs are overwritten. Pointers marked (optional) may be null.

/// y[n] = table[tokens[n]] + positionTable[positions[n]].
struct EmbeddingForward {
  DType type = DType::F32;
  DType tableType = DType::F32;         // of both tables
  int64_t rows = 0, cols = 0, vocab = 0, maxPositions = 0;
  const int32_t* tokens = nullptr;      // [N], each in [0, vocab), else kTokenOutOfRange
  const int32_t* positions = nullptr;   // [N] (optional, with positionTable)
  const void* table = nullptr;          // [V, C] (optional with packedTable)
  const void* packedTable = nullptr;    // (optional) read in its place: what packWeight made of it for a head whose products have its type
  const void* positionTable = nullptr;  // [maxPositions, C] (optional)
  void* y = nullptr;                    // [N, C]

  template <class F> void fields(F&& f) {
    f("type", type), f("tableType", tableType), f("rows", rows), f("cols", cols), f("vocab", vocab);
    f("maxPositions", maxPositions), f("tokens", tokens), f("positions", positions), f("table", table);
    f("packedTable", packedTable), f("positionTable", positionTable), f("y", y);
  }
};

/// dTable[tokens[n]] += dy[n], dPositionTable[positions[n]] += dy[n], rows in rising n.
struct EmbeddingBackward {
  DType type = DType::F32;
  int64_t rows = 0, cols = 0, vocab = 0, maxPositions = 0;
  const int32_t* tokens = nullptr;     // [N]
  const int32_t* positions = nullptr;  // [N] (optional)
  const void* dy = nullptr;            // [N, C]
  void* dTable = nullptr;              // += [V, C]
  void* dPositionTable = nullptr;      // += [maxPositions, C] (optional)

  template <class F> void fields(F&& f) {
    f("type", type), f("rows", rows), f("cols", cols), f("vocab", vocab), f("maxPositions", maxPositions);
    f("tokens", tokens), f("positions", positions), f("dy", dy), f("dTable", dTable), f("dPositionTable", dPositionTable);
  }
};

}  // namespace rlhf
