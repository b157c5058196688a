#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>

#include "model/batch.h"
#include "model/model_impl.h"
#include "model/stop_strings.h"

// Generation with a key/value cache. Sequences are decoded together, up to `maxBatch` of them; when one ends,
// its slot in the cache goes to a prompt that waits. Prompts are read through the same packed forward pass
// that training uses. What is drawn for a sequence depends on its own logits and on (seed, stream, number of
// the new token), not on which others are decoded beside it.

namespace rlhf {
namespace {

// Prompts are packed up to about this many tokens at a time, which bounds the activations of a prefill.
constexpr int64_t kPrefillTokens = 4096;

void requireRange(bool fits, const char* name, double value, const char* allowed) {
  if (!fits) throw Error(code::kArgument, format("generate: %s is %g, expected %s", name, value, allowed));
}

void validate(const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options,
              const ModelConfig& config) {
  requireRange(options.maxNewTokens >= 0, "maxNewTokens", static_cast<double>(options.maxNewTokens),
               "at least 0");
  requireRange(options.minNewTokens >= 0, "minNewTokens", static_cast<double>(options.minNewTokens),
               "at least 0");
  requireRange(options.temperature >= 0 && std::isfinite(options.temperature), "temperature",
               options.temperature, "at least 0");
  requireRange(options.topP > 0 && options.topP <= 1, "topP", options.topP, "above 0 and at most 1");
  requireRange(options.minP >= 0 && options.minP <= 1, "minP", options.minP, "0 to 1");
  requireRange(options.repetitionPenalty > 0 && std::isfinite(options.repetitionPenalty), "repetitionPenalty",
               options.repetitionPenalty, "above 0");
  requireRange(options.topK >= 0, "topK", static_cast<double>(options.topK), "at least 0 (no limit)");
  requireRange(options.maxBatch >= 1, "maxBatch", static_cast<double>(options.maxBatch), "at least 1");
  validateTokens(options.stopTokens, config.vocab, "stopTokens");
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::string name = format("prompts[%zu]", i);
    if (prompts[i].empty())
      throw Error(code::kArgument, name + " has no tokens: begin it with the model's first token");
    if (static_cast<int64_t>(prompts[i].size()) >= config.maxPositions)
      throw Error(code::kContextLength,
                  format("%s has %zu tokens and leaves no room for an answer in the model's context of %lld: shorten it",
                         name.c_str(), prompts[i].size(), static_cast<long long>(config.maxPositions)));
    validateTokens(prompts[i], config.vocab, name.c_str());
  }
}

/// One generate() call.
class Generator {
 public:
  Generator(Model::Impl& model, const std::vector<std::vector<int32_t>>& prompts,
            const GenerateOptions& options, const std::function<void(int64_t, int32_t)>& onToken,
            const std::atomic<bool>& cancel);
  std::vector<Generation> run();

 private:
  struct Sequence {
    int64_t index = 0;   // of its prompt
    int32_t slot = 0;    // in the cache
    int64_t length = 0;  // tokens so far, prompt included
    int32_t last = 0;    // newest token, not yet in the cache
    std::string tail;    // end of the new text, where a stop string may have begun
  };

  /// Inputs of one step on the device, mirrored on the host and copied at once.
  struct Inputs {
    int32_t* tokens;
    int32_t* positions;
    int32_t* slots;
    int32_t* lengths;
    int32_t* drawIndex;
    int64_t* streams;
    uint8_t* forbid;
  };

  void layOut(BufferLayout& layout);
  static Inputs layOutInputs(BufferLayout& layout, int64_t rows);
  void admit();
  std::vector<Sequence> nextPrompts();
  void prefill(const std::vector<Sequence>& sequences);
  void decode();
  ForwardBuffers forward(const RowSet& rows, const CacheUse& use, Batch* packed);
  void draw(std::vector<Sequence>& sequences);
  bool advance(Sequence& sequence, int32_t token);
  bool isStop(int32_t token) const;

  Model::Impl& model_;
  Engine& engine_;
  const ModelConfig& config_;
  const std::vector<std::vector<int32_t>>& prompts_;
  const GenerateOptions& options_;
  const std::function<void(int64_t, int32_t)>& onToken_;
  const std::atomic<bool>& cancel_;
  std::shared_ptr<Adapter> adapter_;

  int64_t slots_ = 0;
  int64_t prefillRows_ = 0;  // capacity of one prefill
  std::deque<int64_t> waiting_;
  std::vector<int32_t> freeSlots_;
  std::vector<Sequence> active_;
  std::vector<Generation> generations_;
  std::vector<uint8_t> seen_;  // [slots, V], with a repetition penalty

  KeyValueCache cache_;
  void* hidden_ = nullptr;         // [slots, C] hidden states that predict the next tokens
  void* logits_ = nullptr;         // [slots, V]
  int32_t* drawn_ = nullptr;       // [slots]
  void* drawnLogProb_ = nullptr;   // [slots]
  uint8_t* deviceSeen_ = nullptr;  // [slots, V]
  int32_t* stopTokens_ = nullptr;
  int32_t* prefillSlots_ = nullptr;  // [prefillRows]
  char* deviceInputs_ = nullptr;
  std::vector<char> hostInputs_;
  Inputs host_{}, device_{};
};

Generator::Generator(Model::Impl& model, const std::vector<std::vector<int32_t>>& prompts,
                     const GenerateOptions& options, const std::function<void(int64_t, int32_t)>& onToken,
                     const std::atomic<bool>& cancel)
    : model_(model),
      engine_(*model.engine),
      config_(model.config()),
      prompts_(prompts),
      options_(options),
      onToken_(onToken),
      cancel_(cancel),
      adapter_(model.adapter(options.adapter)),
      generations_(prompts.size()) {
  validate(prompts, options, config_);
  int64_t longest = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t length = static_cast<int64_t>(prompts[i].size());
    if (options.maxNewTokens == 0) continue;  // nothing is asked for: an empty generation
    waiting_.push_back(static_cast<int64_t>(i));
    longest = std::max(longest, length);
    prefillRows_ += length;
  }
  if (waiting_.empty()) return;
  slots_ = std::min<int64_t>(options.maxBatch, static_cast<int64_t>(waiting_.size()));
  prefillRows_ = roundedCapacity(std::max(longest, std::min(prefillRows_, kPrefillTokens)));
  cache_.capacity = std::min(config_.maxPositions, roundedCapacity(longest + options.maxNewTokens));
  for (int64_t slot = slots_; slot-- > 0;) freeSlots_.push_back(static_cast<int32_t>(slot));
  if (options.repetitionPenalty != 1) seen_.assign(static_cast<size_t>(slots_ * config_.vocab), 0);

  BufferLayout sizes;
  layOut(sizes);
  model_.reserve(model_.generationMemory, MemoryUse::Cache, sizes.bytes(),
                 "the key/value cache (smaller with a lower maxBatch or maxNewTokens)");
  BufferLayout arrays(model_.generationMemory.data());
  layOut(arrays);
  engine_.copy(stopTokens_, options.stopTokens.data(), options.stopTokens.size() * sizeof(int32_t));

  BufferLayout inputSizes;
  layOutInputs(inputSizes, slots_);
  hostInputs_.resize(inputSizes.bytes());
  BufferLayout onHost(hostInputs_.data()), onDevice(deviceInputs_);
  host_ = layOutInputs(onHost, slots_);
  device_ = layOutInputs(onDevice, slots_);
}

void Generator::layOut(BufferLayout& layout) {
  const size_t element = dtypeSize(engine_.type()), statistic = dtypeSize(engine_.accumulator());
  cache_.keys.clear();
  cache_.values.clear();
  for (int64_t block = 0; block < config_.layers; ++block)
    for (std::vector<void*>* arrays : {&cache_.keys, &cache_.values})
      arrays->push_back(
          layout.reserve(slots_ * config_.kvHeads * cache_.capacity * config_.headDim, element));
  hidden_ = layout.reserve(slots_ * config_.hidden, element);
  logits_ = layout.reserve(slots_ * config_.vocab, statistic);
  drawn_ = layout.array<int32_t>(slots_);
  drawnLogProb_ = layout.reserve(slots_, statistic);
  stopTokens_ = layout.array<int32_t>(static_cast<int64_t>(options_.stopTokens.size()));
  prefillSlots_ = layout.array<int32_t>(prefillRows_);
  if (!seen_.empty()) deviceSeen_ = layout.array<uint8_t>(slots_ * config_.vocab);
  BufferLayout inputs;
  layOutInputs(inputs, slots_);
  deviceInputs_ = layout.array<char>(static_cast<int64_t>(inputs.bytes()));
}

Generator::Inputs Generator::layOutInputs(BufferLayout& layout, int64_t rows) {
  Inputs inputs{};
  inputs.tokens = layout.array<int32_t>(rows);
  inputs.positions = layout.array<int32_t>(rows);
  inputs.slots = layout.array<int32_t>(rows);
  inputs.lengths = layout.array<int32_t>(rows);
  inputs.drawIndex = layout.array<int32_t>(rows);
  inputs.streams = layout.array<int64_t>(rows);
  inputs.forbid = layout.array<uint8_t>(rows);
  return inputs;
}

std::vector<Generation> Generator::run() {
  while (!waiting_.empty() || !active_.empty()) {
    if (cancel_.load(std::memory_order_relaxed)) throw Error(code::kAborted, "generation was aborted");
    if (!waiting_.empty() && !freeSlots_.empty()) {
      admit();
    } else {
      decode();
    }
  }
  return std::move(generations_);
}

/// Reads waiting prompts into free slots and draws each one's first token.
void Generator::admit() {
  std::vector<Sequence> sequences = nextPrompts();
  prefill(sequences);
  draw(sequences);
  active_.insert(active_.end(), sequences.begin(), sequences.end());
}

std::vector<Generator::Sequence> Generator::nextPrompts() {
  std::vector<Sequence> sequences;
  int64_t rows = 0;
  while (!waiting_.empty() && !freeSlots_.empty()) {
    const int64_t index = waiting_.front();
    const std::vector<int32_t>& prompt = prompts_[static_cast<size_t>(index)];
    const int64_t length = static_cast<int64_t>(prompt.size());
    if (!sequences.empty() && rows + length > kPrefillTokens) break;
    waiting_.pop_front();
    sequences.push_back({index, freeSlots_.back(), length, 0, {}});
    freeSlots_.pop_back();
    rows += length;
    if (seen_.empty()) continue;
    uint8_t* seen = seen_.data() + sequences.back().slot * config_.vocab;
    std::fill_n(seen, config_.vocab, uint8_t{0});
    for (const int32_t token : prompt) seen[token] = 1;
  }
  return sequences;
}

void Generator::prefill(const std::vector<Sequence>& sequences) {
  Batch packed;
  packed.offsets.push_back(0);
  std::vector<int32_t> slots;
  RowSet rows{0, static_cast<int64_t>(sequences.size()), 0};
  for (const Sequence& sequence : sequences) {
    const std::vector<int32_t>& prompt = prompts_[static_cast<size_t>(sequence.index)];
    packed.tokens.insert(packed.tokens.end(), prompt.begin(), prompt.end());
    packed.offsets.push_back(static_cast<int32_t>(packed.tokens.size()));
    slots.insert(slots.end(), prompt.size(), sequence.slot);
    rows.maxLength = std::max(rows.maxLength, sequence.length);
  }
  rows.rows = packed.rows();
  engine_.copy(prefillSlots_, slots.data(), slots.size() * sizeof(int32_t));
  const ForwardBuffers buffers = forward(rows, {cache_, false, prefillSlots_, nullptr}, &packed);
  const size_t rowBytes = static_cast<size_t>(config_.hidden) * dtypeSize(engine_.type());
  for (size_t s = 0; s < sequences.size(); ++s)
    engine_.copy(
        static_cast<char*>(hidden_) + s * rowBytes,
        static_cast<const char*>(buffers.hidden) + static_cast<size_t>(packed.offsets[s + 1] - 1) * rowBytes,
        rowBytes);
  model_.transformer.logits(static_cast<int64_t>(sequences.size()), hidden_, logits_);
}

/// One new token for every active sequence.
void Generator::decode() {
  for (size_t row = 0; row < active_.size(); ++row) {
    host_.tokens[row] = active_[row].last;
    host_.positions[row] = static_cast<int32_t>(active_[row].length - 1);
    host_.slots[row] = active_[row].slot;
    host_.lengths[row] = static_cast<int32_t>(active_[row].length);
  }
  engine_.copy(deviceInputs_, hostInputs_.data(), hostInputs_.size());
  const int64_t rows = static_cast<int64_t>(active_.size());
  const ForwardBuffers buffers =
      forward({rows, rows, 1}, {cache_, true, device_.slots, device_.lengths}, nullptr);
  model_.transformer.logits(rows, buffers.hidden, logits_);
  draw(active_);
}

/// Runs the transformer over packed prompts, or over the inputs of a decoding step.
ForwardBuffers Generator::forward(const RowSet& rows, const CacheUse& use, Batch* packed) {
  const Architecture& architecture = model_.transformer.architecture();
  PassShape shape;
  shape.rows = roundedCapacity(rows.rows);
  shape.sequences = roundedCapacity(rows.sequences);
  shape.firstSavedBlock = static_cast<int>(architecture.blocks.size());
  shape.adapter = adapter_.get();
  BufferLayout sizes;
  layOutForward(engine_, architecture, shape, sizes, sizes);
  BufferLayout arrays(model_.reserveWorkspace(sizes.bytes()));
  ForwardBuffers buffers = layOutForward(engine_, architecture, shape, arrays, arrays);
  model_.reserveScratch(shape.rows, adapter_.get(), nullptr);
  if (packed) {
    model_.upload(*packed, buffers);
  } else {
    buffers.tokens = device_.tokens;
    buffers.positions = device_.positions;
  }
  model_.transformer.forward(buffers, rows, adapter_.get(), &use);
  return buffers;
}

/// Draws a token per sequence from logits_, in the sequences' order, and drops the sequences that end.
void Generator::draw(std::vector<Sequence>& sequences) {
  const size_t rows = sequences.size(), vocab = static_cast<size_t>(config_.vocab);
  for (size_t row = 0; row < rows; ++row) {
    const Sequence& sequence = sequences[row];
    const int64_t drawn =
        static_cast<int64_t>(generations_[static_cast<size_t>(sequence.index)].tokens.size());
    host_.drawIndex[row] = static_cast<int32_t>(drawn);
    host_.streams[row] = options_.firstStream + sequence.index;
    host_.forbid[row] = drawn < options_.minNewTokens;
    if (deviceSeen_)
      engine_.copy(deviceSeen_ + row * vocab, seen_.data() + static_cast<size_t>(sequence.slot) * vocab,
                   vocab);
  }
  engine_.copy(deviceInputs_, hostInputs_.data(), hostInputs_.size());

  Sample sample{.type = engine_.type(),
                .rows = static_cast<int64_t>(rows),
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

  std::vector<int32_t> tokens(rows);
  engine_.copy(tokens.data(), drawn_, rows * sizeof(int32_t));
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
  return false;
}

bool Generator::isStop(int32_t token) const {
  return std::find(options_.stopTokens.begin(), options_.stopTokens.end(), token) !=
         options_.stopTokens.end();
}

}  // namespace

std::vector<Generation> Model::generate(const std::vector<std::vector<int32_t>>& prompts,
                                        const GenerateOptions& options,
                                        const std::function<void(int64_t, int32_t)>& onToken,
                                        const std::atomic<bool>& cancel) {
  return Generator(*impl_, prompts, options, onToken, cancel).run();
}

}  // namespace rlhf
