#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
void run(const EmbeddingForward& a) {
  for (int64_t n = 0; n < a.rows; ++n) {
    checkIndex("embeddingForward", "tokens", n, a.tokens[n], a.vocab, code::kTokenRange);
    const T* row = in<T>(a.table) + a.tokens[n] * a.cols;
    const T* positionRow = nullptr;
    if (a.positionTable) {
      checkIndex("embeddingForward", "positions", n, a.positions[n], a.maxPositions);
      positionRow = in<T>(a.positionTable) + a.positions[n] * a.cols;
    }
    for (int64_t c = 0; c < a.cols; ++c)
      out<T>(a.y)[n * a.cols + c] = positionRow ? row[c] + positionRow[c] : row[c];
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
