#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
void run(const Rotary& a) {
  const int64_t half = a.rotary / 2;
  for (int64_t n = 0; n < a.rows; ++n) {
    checkIndex("rotary", "positions", n, a.positions[n], a.maxPositions);
    const T* cosine = in<T>(a.cosine) + a.positions[n] * half;
    const T* sine = in<T>(a.sine) + a.positions[n] * half;
    for (int64_t h = 0; h < a.heads; ++h) {
      T* x = out<T>(a.x) + n * a.rowStride + h * a.headDim;
      for (int64_t i = 0; i < half; ++i) {
        const T first = x[i], second = x[i + half];
        const T turn = a.inverse ? -sine[i] : sine[i];
        x[i] = first * cosine[i] - second * turn;
        x[i + half] = second * cosine[i] + first * turn;
      }
    }
  }
}

}  // namespace

RLHF_REF_OP(rotary, Rotary)

}  // namespace rlhf::ref
