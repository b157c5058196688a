#include <algorithm>

#include "cuda/kernels.h"
#include "ops/entry.h"

namespace rlhf::cuda {
namespace {

size_t scratchBytes(const Device*, const ScratchLimits* limits) {
  return std::max({rmsNormScratchBytes(limits->rows, limits->maxWidth), linearScratchBytes(limits->rows, limits->maxWidth),
                   tokenLogProbScratchBytes(limits->rows, limits->vocab)});
}

size_t packedWeightBytes(DType, DType, int64_t, int64_t, int32_t) { return 0; }

}  // namespace

Ops makeOps(const char* backend, const char* instructionSet) {
  Ops ops{};
  ops.abiHash = abiHash();
  ops.backend = backend;
  ops.instructionSet = instructionSet;
  ops.scratchBytes = scratchBytes;
  ops.packedWeightBytes = packedWeightBytes;
  ops.rmsNormForward = opEntry<RmsNormForward, rmsNormForward>;
  ops.rmsNormBackward = opEntry<RmsNormBackward, rmsNormBackward>;
  ops.linearForward = opEntry<LinearForward, linearForward>;
  ops.linearBackward = opEntry<LinearBackward, linearBackward>;
  ops.dropout = opEntry<Dropout, dropout>;
  ops.tokenLogProbForward = opEntry<TokenLogProbForward, tokenLogProbForward>;
  ops.tokenLogProbBackward = opEntry<TokenLogProbBackward, tokenLogProbBackward>;
  return ops;
}

}  // namespace rlhf::cuda
