#include "core/philox.h"
#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t kChunk = 256;  // columns whose mask is made at a time

/// factors[k] = 0 where element first + k of the row is dropped, else `kept`. `first` is a multiple of 4.
void maskFactors(const Dropout& a, uint64_t key, int64_t first, uint64_t threshold, float kept, float* factors) {
  const uint64_t index = (static_cast<uint64_t>(a.layer) << 32) + static_cast<uint64_t>(first / 4);
  for (int64_t block = 0; block < kChunk / 4; ++block) {
    const PhiloxBlock random = philox(a.seed, key, index + static_cast<uint64_t>(block));
    for (int64_t word = 0; word < 4; ++word) factors[4 * block + word] = random.word[word] < threshold ? 0.0f : kept;
  }
}

}  // namespace

void dropout(OpContext& context, const Dropout& a) {
  requireFloat32(a.type, "dropout");
  const uint64_t threshold = static_cast<uint64_t>(std::ceil(a.probability * 0x1p32));
  const float kept = static_cast<float>(1 / (1 - a.probability));
  forEachRange(context, a.rows, a.cols, [&](int64_t begin, int64_t end) {
    alignas(64) float factors[kChunk];
    for (int64_t n = begin; n < end; ++n)
      for (int64_t first = 0; first < a.cols; first += kChunk) {
        maskFactors(a, static_cast<uint64_t>(a.keys[n]), first, threshold, kept, factors);
        const float* x = static_cast<const float*>(a.x) + n * a.xStride + first;
        float* y = static_cast<float*>(a.y) + n * a.yStride + first;
        forEachVector(std::min(kChunk, a.cols - first), [&](int64_t k, auto lanes) {
          const Vec factor = load(factors + k);
          // Not x·0: a dropped infinity is 0 and not NaN.
          const Vec value = factor == Vec{} ? Vec{} : lanes.load(x + k) * factor;
          lanes.store(y + k, a.accumulate ? lanes.load(y + k) + value : value);
        });
      }
  });
}

}  // namespace rlhf::RLHF_ISA
