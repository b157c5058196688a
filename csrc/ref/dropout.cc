#include "core/philox.h"
#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

bool isDropped(const Dropout& a, int64_t n, int64_t k) {
  const uint64_t index = (static_cast<uint64_t>(a.layer) << 32) + static_cast<uint64_t>(k / 4);
  const PhiloxBlock block = philox(a.seed, static_cast<uint64_t>(a.keys[n]), index);
  return static_cast<double>(block.word[k % 4]) < a.probability * 0x1p32;
}

template <class T>
void run(const Dropout& a) {
  const T factor = T(1 / (1 - a.probability));
  for (int64_t n = 0; n < a.rows; ++n)
    for (int64_t k = 0; k < a.cols; ++k) {
      const T value = isDropped(a, n, k) ? T(0) : in<T>(a.x)[n * a.xStride + k] * factor;
      T& y = out<T>(a.y)[n * a.yStride + k];
      y = a.accumulate ? y + value : value;
    }
}

}  // namespace

RLHF_REF_OP(dropout, Dropout)

}  // namespace rlhf::ref
