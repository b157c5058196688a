#include <algorithm>

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"
#include "cpu/kernels/widen.h"

namespace rlhf::RLHF_ISA {
namespace {

/// Checked before anything is written, so that a bad token leaves all arrays as they were.
template <class Arguments>
void requireIndices(const char* op, const Arguments& a, bool withPositions) {
  for (int64_t n = 0; n < a.rows; ++n) requireIndex(op, "tokens", n, a.tokens[n], a.vocab, code::kTokenRange);
  if (withPositions)
    for (int64_t n = 0; n < a.rows; ++n) requireIndex(op, "positions", n, a.positions[n], a.maxPositions);
}

void addTo(float* destination, const float* source, int64_t count) {
  forEachVector(count, [&](int64_t i, auto lanes) {
    lanes.store(destination + i, lanes.load(destination + i) + lanes.load(source + i));
  });
}

/// The same from the head's packed form, where a row of the table is a column of the product and its numbers stand apart.
void embedFromPacked(OpContext& context, const EmbeddingForward& a) {
  withPackedOrder(a.tableType, "embeddingForward", [&]<class Order>(Order) {
    const auto* table = static_cast<const typename Order::Element*>(a.packedTable);
    withReader(a.tableType, [&]<class Reader>(Reader) {
      const auto* positionTable = static_cast<const typename Reader::Element*>(a.positionTable);
      forEachRange(context, a.rows, a.cols, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const auto* positionRow = positionTable ? positionTable + a.positions[n] * a.cols : nullptr;
          float* y = static_cast<float*>(a.y) + n * a.cols;
          for (int64_t c = 0; c < a.cols; c += kWidth) {
            const int count = static_cast<int>(std::min<int64_t>(kWidth, a.cols - c));
            typename Reader::Element row[kWidth] = {};
            for (int i = 0; i < count; ++i) row[i] = table[Order::index(c + i, a.tokens[n], a.cols)];
            const Vec value = Reader::loadPartial(row, count);
            storePartial(y + c, positionRow ? value + Reader::loadPartial(positionRow + c, count) : value, count);
          }
        }
      });
    });
  });
}

}  // namespace

void embeddingForward(OpContext& context, const EmbeddingForward& a) {
  requireFloat32(a.type, "embeddingForward");
  requireIndices("embeddingForward", a, a.positionTable != nullptr);
  if (a.packedTable) return embedFromPacked(context, a);
  withReader(a.tableType, [&]<class Reader>(Reader) {
    const auto* table = static_cast<const typename Reader::Element*>(a.table);
    const auto* positionTable = static_cast<const typename Reader::Element*>(a.positionTable);
    forEachRange(context, a.rows, a.cols, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const auto* row = table + a.tokens[n] * a.cols;
        const auto* positionRow = positionTable ? positionTable + a.positions[n] * a.cols : nullptr;
        float* y = static_cast<float*>(a.y) + n * a.cols;
        for (int64_t c = 0; c < a.cols; c += kWidth) {
          const int count = static_cast<int>(std::min<int64_t>(kWidth, a.cols - c));
          const Vec value = Reader::loadPartial(row + c, count);
          storePartial(y + c, positionRow ? value + Reader::loadPartial(positionRow + c, count) : value, count);
        }
      }
    });
  });
}

void embeddingBackward(OpContext& context, const EmbeddingBackward& a) {
  requireFloat32(a.type, "embeddingBackward");
  requireIndices("embeddingBackward", a, a.dPositionTable != nullptr);
  // Tasks own columns and not rows: a token that occurs twice then meets no other thread, and its gradients
  // add up by rising n.
  constexpr int64_t kColumns = 64;
  const bool worthSharing = a.rows * a.cols > kElementsPerTask;
  forEachTask(context, ceilDivide(a.cols, kColumns), worthSharing, [&](int64_t index, int) {
    const int64_t begin = index * kColumns, width = std::min(kColumns, a.cols - begin);
    for (int64_t n = 0; n < a.rows; ++n) {
      const float* dy = static_cast<const float*>(a.dy) + n * a.cols + begin;
      addTo(static_cast<float*>(a.dTable) + a.tokens[n] * a.cols + begin, dy, width);
      if (a.dPositionTable)
        addTo(static_cast<float*>(a.dPositionTable) + a.positions[n] * a.cols + begin, dy, width);
    }
  });
}

}  // namespace rlhf::RLHF_ISA
