#pragma once
#include <cstddef>

#include "ops/ops.h"

// The ops that this backend has, one function each; backend.cu gathers them into a table. All throw Error.

namespace rlhf::cuda {

void rmsNormForward(OpContext& context, const RmsNormForward& arguments);
void rmsNormBackward(OpContext& context, const RmsNormBackward& arguments);
size_t rmsNormScratchBytes(int64_t rows, int64_t cols);

void linearForward(OpContext& context, const LinearForward& arguments);
void linearBackward(OpContext& context, const LinearBackward& arguments);
size_t linearScratchBytes(int64_t rows, int64_t outputs);

void dropout(OpContext& context, const Dropout& arguments);

void tokenLogProbForward(OpContext& context, const TokenLogProbForward& arguments);
void tokenLogProbBackward(OpContext& context, const TokenLogProbBackward& arguments);
size_t tokenLogProbScratchBytes(int64_t rows, int64_t vocab);

/// The table, under the given name ("cuda", "simt").
Ops makeOps(const char* backend, const char* instructionSet);

}  // namespace rlhf::cuda
