#pragma once
#include <vector>

#include "model/model.h"

namespace rlhf {

/// Throws ERR_RLHF_TOKEN_RANGE unless every token is in the vocabulary; `what` names the tokens.
void validateTokens(const std::vector<int32_t>& tokens, int64_t vocab, const char* what);

/// Throws ERR_RLHF_ARGUMENT, ERR_RLHF_CONTEXT_LENGTH (a sequence counts with its parent) or ERR_RLHF_TOKEN_RANGE.
void validateBatch(const Batch& batch, const ModelConfig& config);

/// What a forward pass must know of the rows of a valid batch.
struct BatchRows {
  std::vector<int32_t> positions;    // [N], in the sequence that begins with its parent's tokens
  std::vector<int32_t> parents;      // [S], −1 for none
  std::vector<int32_t> predictions;  // the batch's, in the order of their sources
  std::vector<int32_t> sources;      // the hidden row that each prediction is made from

  explicit BatchRows(const Batch& batch);
};

/// The rows of a batch whose final hidden states are read.
struct ReadRows {
  std::vector<int32_t> rows;    // rising; empty where all are, or so many that leaving the others out gains nothing
  std::vector<int32_t> places;  // [N] of each row its place among them; their number where it is none of them
  int64_t leftOut = 0;

  /// Those that predictions are made from and, with `values`, those whose values are wanted.
  ReadRows(const Batch& batch, const std::vector<int32_t>& sources, bool values);
};

/// A number for every row that follows from its sequence's tokens up to it, the parent's included.
std::vector<int64_t> prefixKeys(const Batch& batch);

}  // namespace rlhf
