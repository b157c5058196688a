#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"

namespace rlhf::RLHF_ISA {
namespace {

/// One row of heads of at least two vectors, or of those of which only a part turns.
void turnRow(const Rotary& a, const float* cosine, const float* sine, float direction, float* row) {
  const int64_t half = a.rotary / 2;
  for (int64_t h = 0; h < a.heads; ++h) {
    float* const first = row + h * a.headDim;
    float* const second = first + half;
    forEachVector(half, [&](int64_t i, auto lanes) {
      const Vec c = lanes.load(cosine + i), s = lanes.load(sine + i) * direction;
      const Vec x = lanes.load(first + i), y = lanes.load(second + i);
      lanes.store(first + i, x * c - y * s);
      lanes.store(second + i, y * c + x * s);
    });
  }
}

/// Lanes 0 to count − 1 of `value`, again and again.
template <int count>
Vec repeated(Vec value) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(value, value, (I % count)...);
  }(std::make_integer_sequence<int, kWidth>{});
}

/// One row of heads so narrow that a vector holds whole ones: each turns in its vector.
template <int kHeadDim>
void turnNarrowRow(const Rotary& a, const float* cosine, const float* sine, float direction, float* row) {
  constexpr int kHalf = kHeadDim / 2;
  const Vec sign = (laneIndex() & kHalf) == 0 ? set1(-direction) : set1(direction);
  const Vec c = repeated<kHalf>(loadPartial(cosine, kHalf)), s = repeated<kHalf>(loadPartial(sine, kHalf)) * sign;
  forEachVector(a.heads * kHeadDim, [&](int64_t i, auto lanes) {
    const Vec x = lanes.load(row + i);
    lanes.store(row + i, x * c + exchanged<kHalf>(x) * s);
  });
}

using TurnRow = void (*)(const Rotary&, const float* cosine, const float* sine, float direction, float* row);

TurnRow turnRowFor(const Rotary& a) {
  if (a.rotary == a.headDim && a.headDim <= kWidth) switch (a.headDim) {
      case 2: return turnNarrowRow<2>;
      case 4: return turnNarrowRow<4>;
      case 8: return turnNarrowRow<std::min(8, kWidth)>;
      case 16: return turnNarrowRow<std::min(16, kWidth)>;
    }
  return turnRow;
}

}  // namespace

void rotary(OpContext& context, const Rotary& a) {
  requireFloat32(a.type, "rotary");
  for (int64_t n = 0; n < a.rows; ++n) requireIndex("rotary", "positions", n, a.positions[n], a.maxPositions);
  const int64_t half = a.rotary / 2;
  const float direction = a.inverse ? -1.0f : 1.0f;
  const TurnRow turn = turnRowFor(a);
  forEachRange(context, a.rows, a.heads * a.rotary, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t angles = a.positions[n] * half;
      turn(a, static_cast<const float*>(a.cosine) + angles, static_cast<const float*>(a.sine) + angles, direction,
           static_cast<float*>(a.x) + n * a.rowStride);
    }
  });
}

}  // namespace rlhf::RLHF_ISA
