#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"

namespace rlhf::RLHF_ISA {

void rotary(OpContext& context, const Rotary& a) {
  requireFloat32(a.type, "rotary");
  for (int64_t n = 0; n < a.rows; ++n) requireIndex("rotary", "positions", n, a.positions[n], a.maxPositions);
  const int64_t half = a.rotary / 2;
  const float direction = a.inverse ? -1.0f : 1.0f;
  forEachRange(context, a.rows, a.heads * a.rotary, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* cosine = static_cast<const float*>(a.cosine) + a.positions[n] * half;
      const float* sine = static_cast<const float*>(a.sine) + a.positions[n] * half;
      for (int64_t h = 0; h < a.heads; ++h) {
        float* first = static_cast<float*>(a.x) + n * a.rowStride + h * a.headDim;
        float* second = first + half;
        forEachVector(half, [&](int64_t i, auto lanes) {
          const Vec c = lanes.load(cosine + i), s = lanes.load(sine + i) * direction;
          const Vec x = lanes.load(first + i), y = lanes.load(second + i);
          lanes.store(first + i, x * c - y * s);
          lanes.store(second + i, y * c + x * s);
        });
      }
    }
  });
}

}  // namespace rlhf::RLHF_ISA
