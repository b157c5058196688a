#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
void run(const EmbeddingForward& a) {
  if (a.packedTable)
    throw Error(code::kUnsupported, "embeddingForward: ref has no packed form, as its packedWeightBytes of 0 says");
  const Parameter<T> table(a.table, a.tableType), positionTable(a.positionTable, a.tableType);
  for (int64_t n = 0; n < a.rows; ++n) {
    checkIndex("embeddingForward", "tokens", n, a.tokens[n], a.vocab, code::kTokenRange);
    if (a.positionTable) checkIndex("embeddingForward", "positions", n, a.positions[n], a.maxPositions);
    for (int64_t c = 0; c < a.cols; ++c) {
      const T value = table[a.tokens[n] * a.cols + c];
      out<T>(a.y)[n * a.cols + c] = a.positionTable ? value + positionTable[a.positions[n] * a.cols + c] : value;
    }
  }
}

template <class T>
void run(const EmbeddingBackward& a) {
  for (int64_t n = 0; n < a.rows; ++n) {
    checkIndex("embeddingBackward", "tokens", n, a.tokens[n], a.vocab, code::kTokenRange);
    if (a.dPositionTable) checkIndex("embeddingBackward", "positions", n, a.positions[n], a.maxPositions);
    for (int64_t c = 0; c < a.cols; ++c) {
      const T dy = in<T>(a.dy)[n * a.cols + c];
      out<T>(a.dTable)[a.tokens[n] * a.cols + c] += dy;
      if (a.dPositionTable) out<T>(a.dPositionTable)[a.positions[n] * a.cols + c] += dy;
    }
  }
}

}  // namespace

RLHF_REF_OP(embeddingForward, EmbeddingForward)
RLHF_REF_OP(embeddingBackward, EmbeddingBackward)

}  // namespace rlhf::ref
