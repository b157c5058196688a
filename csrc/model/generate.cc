#include <algorithm>

#include "model/generator.h"
#include "model/stop_strings.h"

namespace rlhf {

std::vector<Generation> Generator::run() {
  if (slots_ == 0) return std::move(generations_);
  while (!waiting_.empty() || !active_.empty()) {
    if (cancel_.load(std::memory_order_relaxed)) throw Error(code::kAborted, "generation was aborted");
    if (!admit()) decode();
  }
  return std::move(generations_);
}

/// Reads waiting prompts as far as there is room, and draws each sequence's first token; false where there is none.
bool Generator::admit() {
  Admitted admitted = nextSequences();
  if (admitted.sequences.empty()) return false;
  read(admitted);
  uploadInputs(admitted.sequences);
  sample(static_cast<int64_t>(admitted.sequences.size()));
  keepDrawn(admitted.sequences);
  active_.insert(active_.end(), admitted.sequences.begin(), admitted.sequences.end());
  return true;
}

Generator::Admitted Generator::nextSequences() {
  Admitted admitted;
  admitted.sequences.reserve(freeSlots_.size());
  int64_t rows = 0;
  while (!waiting_.empty() && !freeSlots_.empty() && waiting_.fits()) {
    const PromptGroup& group = waiting_.front();
    const bool isRead = waiting_.frontIsRead();
    if (!isRead && rows > 0 && rows + group.length() > kPrefillTokens) break;
    PromptQueue::Admission admission = waiting_.admit();
    admitted.held = !admission.isLast;
    admitted.sequences.push_back({admission.prompt, freeSlots_.back(), group.length(), std::move(admission.pages), 0, {}});
    freeSlots_.pop_back();
    const Sequence& sequence = admitted.sequences.back();
    if (!isRead) {
      rows += group.length();
      admitted.read.push_back({group.tokens, sequence.pages});
      if (admission.copied >= 0) admitted.read.back().pages.back() = admission.copied;
    }
    if (admission.copied >= 0) admitted.copies.emplace_back(admission.copied, sequence.pages.back());
    admitted.prompts.push_back(admitted.read.empty() ? kHeldPrompt : admitted.read.size() - 1);
    if (seen_.empty()) continue;
    uint8_t* seen = seen_.data() + sequence.slot * config_.vocab;
    std::fill_n(seen, config_.vocab, uint8_t{0});
    for (const int32_t token : *group.tokens) seen[token] = 1;
  }
  return admitted;
}
/// Reads prompts, and finds the logits of every sequence's first token.
void Generator::read(const Admitted& admitted) {
  const size_t rowBytes = static_cast<size_t>(config_.hidden) * dtypeSize(engine_.type());
  std::vector<const char*> hidden;  // of the last token of each prompt
  if (!admitted.read.empty()) {
    Batch packed;
    packed.offsets.push_back(0);
    std::vector<int32_t> places, ends;
    RowSet rows{0, static_cast<int64_t>(admitted.read.size()), 0};
    for (const Prompt& prompt : admitted.read) {
      const int64_t length = static_cast<int64_t>(prompt.tokens->size());
      packed.tokens.insert(packed.tokens.end(), prompt.tokens->begin(), prompt.tokens->end());
      packed.offsets.push_back(static_cast<int32_t>(packed.tokens.size()));
      ends.push_back(static_cast<int32_t>(packed.tokens.size()) - 1);
      for (int64_t position = 0; position < length; ++position) places.push_back(placeOf(prompt.pages, position));
      rows.maxLength = std::max(rows.maxLength, length);
    }
    rows.rows = packed.rows();
    packed.valueRows = ends;
    engine_.upload(prefillPlaces_, places.data(), places.size() * sizeof(int32_t));
    const ForwardBuffers buffers = forward(rows, {cache_, prefillPlaces_}, &packed);
    for (size_t p = 0; p < admitted.read.size(); ++p)
      hidden.push_back(static_cast<const char*>(buffers.hidden) + static_cast<size_t>(ends[p]) * rowBytes);
  }
  for (const auto& [from, to] : admitted.copies) copyPage(from, to);
  for (size_t s = 0; s < admitted.sequences.size(); ++s)
    engine_.copy(static_cast<char*>(hidden_) + s * rowBytes,
                 admitted.prompts[s] == kHeldPrompt ? heldHidden_ : hidden[admitted.prompts[s]], rowBytes);
  if (admitted.held && !hidden.empty()) engine_.copy(heldHidden_, hidden.back(), rowBytes);
  model_.transformer.logits(static_cast<int64_t>(admitted.sequences.size()), hidden_, logits_);
}

void Generator::copyPage(int32_t from, int32_t to) {
  const size_t bytes = static_cast<size_t>(pageElements()) * dtypeSize(cache_.type);
  for (const std::vector<void*>* arrays : {&cache_.keys, &cache_.values})
    for (void* pages : *arrays)
      engine_.copy(static_cast<char*>(pages) + static_cast<size_t>(to) * bytes,
                   static_cast<const char*>(pages) + static_cast<size_t>(from) * bytes, bytes);
}

/// One new token for every active sequence.
void Generator::decode() {
  for (size_t row = 0; row < active_.size(); ++row) {
    Sequence& sequence = active_[row];
    waiting_.grow(sequence.pages, sequence.length);
    host_.tokens[row] = sequence.last;
    host_.positions[row] = static_cast<int32_t>(sequence.length - 1);
    host_.places[row] = placeOf(sequence.pages, sequence.length - 1);
    host_.lengths[row] = static_cast<int32_t>(sequence.length);
    std::copy(sequence.pages.begin(), sequence.pages.end(), host_.tables + static_cast<int64_t>(row) * tableStride_);
  }
  uploadInputs(active_);
  const int64_t rows = static_cast<int64_t>(active_.size());
  Step& step = steps_[rows];
  if (!step.recording) step.recording = recordingOf(rows, step.runs++);
  if (step.recording) step.recording->run();
  else decodeOnce(rows);
  keepDrawn(active_);
}

/// A recording of the step that has run so often in this call: an earlier call's, or one that is made now. Null: it is run as it is.
std::shared_ptr<const Recording> Generator::recordingOf(int64_t rows, int64_t runs) {
  if (!Recording::isPossible(engine_)) return nullptr;
  const auto step = [&] { decodeOnce(rows); };
  if (runs == 0) return model_.stepRecordings.find(rows, engine_.trace(step));
  if (runs != kRunsBeforeRecording) return nullptr;
  auto made = std::make_shared<const Recording>(engine_, step);
  model_.stepRecordings.keep(rows, engine_.trace(step), made);
  return made;
}

/// What a step does on the device. It depends on the number of sequences alone: all else stands in arrays that keep their places.
void Generator::decodeOnce(int64_t rows) {
  const ForwardBuffers buffers =
      forward({.rows = rows, .sequences = rows, .maxLength = 1, .decoding = true}, {cache_, device_.places, device_.tables, tableStride_, device_.lengths}, nullptr);
  model_.transformer.logits(rows, buffers.hidden, logits_);
  sample(rows);
}

/// Runs the transformer over packed prompts, or over the inputs of a decoding step.
ForwardBuffers Generator::forward(RowSet rows, const CacheUse& use, const Batch* packed) {
  const Architecture& architecture = model_.transformer.architecture();
  const PassShape shape = shapeOf(rows.rows, rows.sequences);
  BufferLayout sizes;
  layOutForward(engine_, architecture, shape, sizes, sizes);
  BufferLayout arrays(model_.reserveWorkspace(sizes.bytes()));
  ForwardBuffers buffers = layOutForward(engine_, architecture, shape, arrays, arrays);
  model_.reserveScratch(shape.rows, adapter_.get(), nullptr, 0, use.tableStride);
  if (packed) {
    rows.leftOut = model_.upload(*packed, buffers, true);
  } else {
    buffers.tokens = device_.tokens;
    buffers.positions = device_.positions;
  }
  model_.transformer.forward(buffers, rows, adapter_.get(), &use);
  return buffers;
}

/// Brings what host_ holds, and what the draws of these sequences depend on, to the device.
void Generator::uploadInputs(const std::vector<Sequence>& sequences) {
  const size_t rows = sequences.size(), vocab = static_cast<size_t>(config_.vocab);
  for (size_t row = 0; row < rows; ++row) {
    const Sequence& sequence = sequences[row];
    const int64_t drawn =
        static_cast<int64_t>(generations_[static_cast<size_t>(sequence.index)].tokens.size());
    host_.drawIndex[row] = static_cast<int32_t>(drawn);
    host_.streams[row] = options_.firstStream + sequence.index;
    host_.forbid[row] = drawn < options_.minNewTokens;
    if (deviceSeen_)
      engine_.upload(deviceSeen_ + row * vocab, seen_.data() + static_cast<size_t>(sequence.slot) * vocab,
                   vocab);
  }
  engine_.upload(deviceInputs_, hostInputs_.data(), hostInputs_.size());
}

/// Draws a token per sequence from logits_, in the sequences' order.
void Generator::sample(int64_t rows) {
  Sample sample{.type = engine_.accumulator(),
                .rows = rows,
                .vocab = config_.vocab,
                .forbiddenCount = static_cast<int64_t>(options_.stopTokens.size()),
                .temperature = options_.temperature,
                .topP = options_.topP,
                .minP = options_.minP,
                .repetitionPenalty = options_.repetitionPenalty,
                .topK = options_.topK,
                .seed = options_.seed};
  sample.streams = device_.streams;
  sample.positions = device_.drawIndex;
  sample.seen = deviceSeen_;
  if (sample.forbiddenCount > 0) {
    sample.forbidden = stopTokens_;
    sample.forbid = device_.forbid;
  }
  sample.logits = logits_;
  sample.token = drawn_;
  sample.logProb = drawnLogProb_;
  engine_.run(engine_.ops().sample, sample);
}

/// Appends the tokens that were drawn, and drops the sequences that end.
void Generator::keepDrawn(std::vector<Sequence>& sequences) {
  const size_t rows = sequences.size();
  std::vector<int32_t> tokens(rows);
  engine_.download(tokens.data(), drawn_, rows * sizeof(int32_t));
  engine_.synchronize();
  size_t kept = 0;
  for (size_t row = 0; row < rows; ++row)
    if (advance(sequences[row], tokens[row])) {
      if (kept != row) sequences[kept] = std::move(sequences[row]);
      ++kept;
    }
  sequences.resize(kept);
}

/// Appends a token; false when the sequence ends with it.
bool Generator::advance(Sequence& sequence, int32_t token) {
  Generation& generation = generations_[static_cast<size_t>(sequence.index)];
  generation.tokens.push_back(token);
  generation.stopped = isStop(token);
  if (options_.stopStrings && options_.stopStrings->append(sequence.tail, token))
    generation.stopped |= static_cast<int64_t>(generation.tokens.size()) >= options_.minNewTokens;
  ++sequence.length;
  sequence.last = token;
  if (!seen_.empty()) seen_[static_cast<size_t>(sequence.slot * config_.vocab + token)] = 1;
  if (onToken_) onToken_(sequence.index, token);
  const bool full = static_cast<int64_t>(generation.tokens.size()) >= options_.maxNewTokens ||
                    sequence.length >= config_.maxPositions;
  if (!generation.stopped && !full) return true;
  freeSlots_.push_back(sequence.slot);
  waiting_.release(sequence.pages, static_cast<int64_t>(prompts_[static_cast<size_t>(sequence.index)].size()));
  return false;
}

bool Generator::isStop(int32_t token) const {
  return std::find(options_.stopTokens.begin(), options_.stopTokens.end(), token) !=
         options_.stopTokens.end();
}

std::vector<Generation> Model::generate(const std::vector<std::vector<int32_t>>& prompts,
                                        const GenerateOptions& options,
                                        const std::function<void(int64_t, int32_t)>& onToken,
                                        const std::atomic<bool>& cancel) {
  return Generator(*impl_, prompts, options, onToken, cancel).run();
}

}  // namespace rlhf
