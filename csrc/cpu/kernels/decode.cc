#include <cmath>
#include <cstring>

#include "cpu/kernels/attention_tiles.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"

namespace rlhf::RLHF_ISA {
namespace {

/// scores becomes exp(scores − maximum so far); returns the factor by which earlier sums shrink.
float softmaxRow(int64_t keys, float* scores, float& runningMaximum, float& runningSum) {
  std::fill(scores + keys, scores + kTile, -INFINITY);
  Vec best = load(scores);
  for (int64_t i = kWidth; i < kTile; i += kWidth) best = max(best, load(scores + i));
  const float before = runningMaximum;
  runningMaximum = std::max(before, maximum(best));
  const float correction = std::exp(before - runningMaximum);
  Vec total = {};
  for (int64_t i = 0; i < kTile; i += kWidth) {
    const Vec p = exp(load(scores + i) - runningMaximum);
    store(scores + i, p);
    total += p;
  }
  runningSum = runningSum * correction + sum(total);
  return correction;
}

/// All query heads of one sequence that share a key/value head, so that its cache is streamed once.
void decodeGroup(const DecodeAttention& a, int64_t row, int64_t kvHead, char* memory) {
  const int64_t group = a.heads / a.kvHeads, dim = a.headDim, length = a.lengths[row];
  ScratchFloats scratch(memory);
  float* const keysT = scratch.take(dim * kTile);
  float* const output = scratch.take(group * dim);
  float* const scores = scratch.take(group * kTile);
  float* const maxima = scratch.take(group);
  float* const sums = scratch.take(group);
  const float* q = static_cast<const float*>(a.q) + row * a.qStride + kvHead * group * dim;
  std::fill_n(output, group * dim, 0.0f);
  std::fill_n(maxima, group, -INFINITY);
  std::fill_n(sums, group, 0.0f);

  const int64_t cache = (a.slots[row] * a.kvHeads + kvHead) * a.capacity * dim;
  for (int64_t first = firstVisibleKey(length - 1, a.window); first < length; first += kTile) {
    const int64_t keys = std::min(kTile, length - first);
    const float* k = static_cast<const float*>(a.kCache) + cache + first * dim;
    const float* v = static_cast<const float*>(a.vCache) + cache + first * dim;
    transposeScaled(k, dim, keys, dim, static_cast<float>(a.scale), keysT, kTile);
    multiply<Contiguous::Depth>(group, roundUp(keys, kWidth),
                                {.depth = dim,
                                 .a = q,
                                 .aStride = dim,
                                 .b = keysT,
                                 .bStride = kTile,
                                 .c = scores,
                                 .cStride = kTile,
                                 .accumulate = false});
    for (int64_t h = 0; h < group; ++h) {
      const float correction = softmaxRow(keys, scores + h * kTile, maxima[h], sums[h]);
      float* const o = output + h * dim;
      forEachVector(dim, [&](int64_t d, auto lanes) { lanes.store(o + d, lanes.load(o + d) * correction); });
    }
    multiply<Contiguous::Depth>(group, dim,
                                {.depth = keys,
                                 .a = scores,
                                 .aStride = kTile,
                                 .b = v,
                                 .bStride = dim,
                                 .c = output,
                                 .cStride = dim,
                                 .accumulate = true});
  }

  float* o = static_cast<float*>(a.o) + row * a.oStride + kvHead * group * dim;
  for (int64_t h = 0; h < group; ++h) {
    const float inverse = 1.0f / sums[h];
    for (int64_t d = 0; d < dim; ++d) o[h * dim + d] = output[h * dim + d] * inverse;
  }
}

}  // namespace

void kvAppend(OpContext& context, const KvAppend& a) {
  requireFloat32(a.type, "kvAppend");
  for (int64_t n = 0; n < a.rows; ++n) requireIndex("kvAppend", "positions", n, a.positions[n], a.capacity);
  const size_t bytes = static_cast<size_t>(a.headDim) * sizeof(float);
  forEachRange(context, a.rows, 2 * a.kvHeads * a.headDim, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t g = 0; g < a.kvHeads; ++g) {
        const int64_t at = ((a.slots[n] * a.kvHeads + g) * a.capacity + a.positions[n]) * a.headDim;
        std::memcpy(static_cast<float*>(a.kCache) + at,
                    static_cast<const float*>(a.k) + n * a.kStride + g * a.headDim, bytes);
        std::memcpy(static_cast<float*>(a.vCache) + at,
                    static_cast<const float*>(a.v) + n * a.vStride + g * a.headDim, bytes);
      }
  });
}

void decodeAttention(OpContext& context, const DecodeAttention& a) {
  requireFloat32(a.type, "decodeAttention");
  requireHeadDim(a.headDim, "decodeAttention");
  const int64_t group = a.heads / a.kvHeads;
  const int64_t scratchFloats = kTile * a.headDim + group * (a.headDim + kTile + 2) + 64;
  if (scratchFloats * static_cast<int64_t>(sizeof(float)) > static_cast<int64_t>(cpu::kScratchPerThread))
    throw Error(code::kUnsupported, "decodeAttention: too many query heads per key/value head for the CPU");
  int64_t positions = 0;
  for (int64_t n = 0; n < a.rows; ++n) {
    requireIndex("decodeAttention", "lengths", n, a.lengths[n] - int64_t{1}, a.capacity);
    positions += a.window > 0 ? std::min<int64_t>(a.lengths[n], a.window) : a.lengths[n];
  }
  const bool worthSharing = positions * a.heads * a.headDim > kElementsPerTask;
  forEachTask(context, a.rows * a.kvHeads, worthSharing, [&](int64_t index, int slot) {
    decodeGroup(a, index / a.kvHeads, index % a.kvHeads, cpu::threadScratch(context, slot));
  });
}

}  // namespace rlhf::RLHF_ISA
