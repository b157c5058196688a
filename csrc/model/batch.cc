#include "model/batch.h"

#include <algorithm>

#include "ops/parents.h"

namespace rlhf {

void validateTokens(const std::vector<int32_t>& tokens, int64_t vocab, const char* what) {
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= vocab)
      throw Error(code::kTokenRange,
                  format("%s[%zu] is %d, outside the vocabulary of %lld: was another model's tokenizer used?",
                         what, i, tokens[i], static_cast<long long>(vocab)));
}

namespace {

void validateOffsets(const Batch& batch) {
  const int64_t rows = batch.rows();
  const std::vector<int32_t>& offsets = batch.offsets;
  if (rows < 1) throw Error(code::kArgument, "the batch has no tokens");
  if (offsets.size() < 2 || offsets.front() != 0 || offsets.back() != rows)
    throw Error(code::kArgument, format("batch.offsets must start at 0 and end at the number of tokens, %lld",
                                        static_cast<long long>(rows)));
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int64_t length = offsets[s + 1] - static_cast<int64_t>(offsets[s]);
    if (length < 1)
      throw Error(code::kArgument, format("batch.offsets must rise, but sequence %zu has %lld tokens", s,
                                          static_cast<long long>(length)));
    if (offsets[s] < 0 || offsets[s] >= rows)
      throw Error(code::kArgument, format("batch.offsets[%zu] is %d, outside the batch", s, offsets[s]));
  }
}

int32_t parentOf(const Batch& batch, size_t sequence) {
  return batch.parents.empty() ? -1 : batch.parents[sequence];
}

int32_t lengthOf(const Batch& batch, size_t sequence) {
  return batch.offsets[sequence + 1] - batch.offsets[sequence];
}

/// Tokens that stand before a sequence's own.
int32_t inheritedLength(const Batch& batch, size_t sequence) {
  const int32_t parent = parentOf(batch, sequence);
  return parent < 0 ? 0 : lengthOf(batch, static_cast<size_t>(parent));
}

void validateParents(const Batch& batch) {
  if (batch.parents.empty()) return;
  if (static_cast<int64_t>(batch.parents.size()) != batch.sequences())
    throw Error(code::kShape, format("batch.parents has %zu elements, expected one per sequence, %lld",
                                     batch.parents.size(), static_cast<long long>(batch.sequences())));
  requireParents("batch", batch.parents.data(), batch.sequences());
}

void validateLengths(const Batch& batch, int64_t context) {
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
    const int64_t length = int64_t{lengthOf(batch, s)} + inheritedLength(batch, s);
    if (length > context)
      throw Error(code::kContextLength,
                  format("sequence %zu has %lld tokens%s, more than the model's context of %lld: truncate it", s,
                         static_cast<long long>(length), parentOf(batch, s) < 0 ? "" : " with its parent's",
                         static_cast<long long>(context)));
  }
}

void validatePredictions(const Batch& batch) {
  std::vector<bool> unpredicted(batch.tokens.size(), false);
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s)
    if (parentOf(batch, s) < 0) unpredicted[static_cast<size_t>(batch.offsets[s])] = true;
  int64_t previous = 0;
  for (size_t p = 0; p < batch.predictions.size(); ++p) {
    const int64_t token = batch.predictions[p];
    if (token <= previous || token >= batch.rows() || unpredicted[static_cast<size_t>(token)])
      throw Error(code::kArgument,
                  format("batch.predictions must rise and name no sequence's first token, unless it has a parent; "
                         "element %zu is %lld",
                         p, static_cast<long long>(token)));
    previous = token;
  }
}

void validateValueRows(const Batch& batch) {
  if (!batch.valueRows) return;
  int64_t previous = -1;
  for (const int32_t row : *batch.valueRows) {
    if (row <= previous || row >= batch.rows())
      throw Error(code::kArgument, format("batch.valueRows must rise and name rows of the batch, but %d follows %lld", row,
                                          static_cast<long long>(previous)));
    previous = row;
  }
}

}  // namespace

void validateBatch(const Batch& batch, const ModelConfig& config) {
  validateOffsets(batch);
  validateParents(batch);
  validateLengths(batch, config.maxPositions);
  validateTokens(batch.tokens, config.vocab, "batch.tokens");
  validatePredictions(batch);
  validateValueRows(batch);
}

BatchRows::BatchRows(const Batch& batch) : positions(batch.tokens.size()) {
  std::vector<int32_t> previous(batch.tokens.size());  // the token before each token
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
    const int32_t begin = batch.offsets[s], parent = parentOf(batch, s), inherited = inheritedLength(batch, s);
    parents.push_back(parent);
    for (int32_t t = begin; t < batch.offsets[s + 1]; ++t) {
      positions[static_cast<size_t>(t)] = inherited + t - begin;
      previous[static_cast<size_t>(t)] = t - 1;
    }
    if (parent >= 0) previous[static_cast<size_t>(begin)] = batch.offsets[static_cast<size_t>(parent) + 1] - 1;
  }
  predictions = batch.predictions;
  const auto sourceOf = [&](int32_t token) { return previous[static_cast<size_t>(token)]; };
  std::stable_sort(predictions.begin(), predictions.end(),
                   [&](int32_t left, int32_t right) { return sourceOf(left) < sourceOf(right); });
  for (const int32_t token : predictions) sources.push_back(sourceOf(token));
}

ReadRows::ReadRows(const Batch& batch, const std::vector<int32_t>& sources, bool values) {
  // Rows are taken out and put back: three rows of the stream are copied for each one.
  constexpr int64_t kFewestLeftOut = 16;  // of so many rows one
  if (values && !batch.valueRows) return;
  std::vector<bool> isRead(batch.tokens.size(), false);
  for (const int32_t source : sources) isRead[static_cast<size_t>(source)] = true;
  if (values)
    for (const int32_t row : *batch.valueRows) isRead[static_cast<size_t>(row)] = true;
  const int64_t read = std::count(isRead.begin(), isRead.end(), true);
  if ((batch.rows() - read) * kFewestLeftOut < batch.rows()) return;
  leftOut = batch.rows() - read;
  for (size_t row = 0; row < isRead.size(); ++row) {
    places.push_back(static_cast<int32_t>(isRead[row] ? static_cast<int64_t>(rows.size()) : read));
    if (isRead[row]) rows.push_back(static_cast<int32_t>(row));
  }
}

std::vector<int64_t> prefixKeys(const Batch& batch) {
  std::vector<int64_t> keys(batch.tokens.size());
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
    const int32_t parent = parentOf(batch, s);
    const size_t lastOfParent = parent < 0 ? 0 : static_cast<size_t>(batch.offsets[static_cast<size_t>(parent) + 1] - 1);
    uint64_t key = parent < 0 ? 0 : static_cast<uint64_t>(keys[lastOfParent]);
    for (int32_t t = batch.offsets[s]; t < batch.offsets[s + 1]; ++t) {
      // The finaliser of SplitMix64 (Steele et al., 2014), a bijection that spreads every bit over all of them.
      key += 0x9E3779B97F4A7C15ull * (static_cast<uint64_t>(batch.tokens[static_cast<size_t>(t)]) + 1);
      key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9ull;
      key = (key ^ (key >> 27)) * 0x94D049BB133111EBull;
      key ^= key >> 31;
      keys[static_cast<size_t>(t)] = static_cast<int64_t>(key);
    }
  }
  return keys;
}

}  // namespace rlhf
