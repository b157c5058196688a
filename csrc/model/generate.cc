#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "model/batch.h"
#include "model/model_impl.h"
#include "model/prompt_queue.h"
#include "model/stop_strings.h"

// Generation with a key/value cache of pages. Sequences are decoded together, up to `maxBatch` of them and as many as the cache has
// pages for; when one ends, its pages go to a prompt that waits. Prompts are read through the same packed forward pass
// that training uses, equal ones once. What is drawn for a sequence depends on its own logits and on (seed, stream, number of
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
    int64_t index = 0;           // of its prompt
    int32_t slot = 0;            // which of the sequences in flight it is
    int64_t length = 0;          // tokens so far, prompt included
    std::vector<int32_t> pages;  // of the cache
    int32_t last = 0;            // newest token, not yet in the cache
    std::string tail;            // end of the new text, where a stop string may have begun
  };

  /// Inputs of one step on the device, mirrored on the host and copied at once.
  struct Inputs {
    int32_t* tokens;
    int32_t* positions;
    int32_t* places;
    int32_t* tables;  // [slots, tableStride_]
    int32_t* lengths;
    int32_t* drawIndex;
    int64_t* streams;
    uint8_t* forbid;
  };

  void layOut(BufferLayout& layout);
  Inputs layOutInputs(BufferLayout& layout) const;
  /// A prompt and the pages for it.
  struct Prompt {
    const std::vector<int32_t>* tokens;
    std::vector<int32_t> pages;
  };
  /// What is admitted at a time.
  struct Admitted {
    std::vector<Sequence> sequences;
    std::vector<size_t> prompts;            // of each sequence: which of those read now, or kHeldPrompt
    std::vector<Prompt> read;               // prompts that are to be read now
    std::vector<std::pair<int32_t, int32_t>> copies;  // pages to copy when they are: from, to
    bool held = false;                      // whether some of the last prompt's sequences have to wait
  };
  static constexpr size_t kHeldPrompt = SIZE_MAX;

  void reservePasses();
  void choosePages();
  size_t bytesWith(int64_t pages);
  bool admit();
  Admitted nextSequences();
  void read(const Admitted& admitted);
  void copyPage(int32_t from, int32_t to);
  void decode();
  PassShape shapeOf(int64_t rows, int64_t sequences) const;
  ForwardBuffers forward(const RowSet& rows, const CacheUse& use, Batch* packed);
  void draw(std::vector<Sequence>& sequences);
  bool advance(Sequence& sequence, int32_t token);
  bool isStop(int32_t token) const;
  /// Numbers of a page's keys in one block, and of its values.
  int64_t pageElements() const { return config_.kvHeads * config_.headDim * kCachePageTokens; }
  static int32_t placeOf(const std::vector<int32_t>& pages, int64_t position) {
    return static_cast<int32_t>(pages[static_cast<size_t>(position / kCachePageTokens)] * kCachePageTokens +
                                position % kCachePageTokens);
  }

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
  int64_t tableStride_ = 0;  // pages that a sequence may have
  PromptQueue waiting_;
  std::vector<int32_t> freeSlots_;
  std::vector<Sequence> active_;
  std::vector<Generation> generations_;
  std::vector<uint8_t> seen_;  // [slots, V], with a repetition penalty

  KeyValueCache cache_;
  void* hidden_ = nullptr;         // [slots, C] hidden states that predict the next tokens
  void* heldHidden_ = nullptr;     // [C] that of the prompt of which some sequences wait
  void* logits_ = nullptr;         // [slots, V]
  int32_t* drawn_ = nullptr;       // [slots]
  void* drawnLogProb_ = nullptr;   // [slots]
  uint8_t* deviceSeen_ = nullptr;  // [slots, V]
  int32_t* stopTokens_ = nullptr;
  int32_t* prefillPlaces_ = nullptr;  // [prefillRows]
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
      waiting_(prompts, options, config_),
      generations_(prompts.size()) {
  validate(prompts, options, config_);
  if (prompts.empty() || options.maxNewTokens == 0) return;  // nothing is asked for: empty generations
  int64_t longest = 0;
  for (const PromptGroup& group : waiting_.groups()) {
    longest = std::max(longest, group.length());
    prefillRows_ += group.length();
  }
  slots_ = std::min<int64_t>(options.maxBatch, static_cast<int64_t>(prompts.size()));
  prefillRows_ = roundedCapacity(std::max(longest, std::min(prefillRows_, kPrefillTokens)));
  tableStride_ = cachePages(std::min(config_.maxPositions, longest + options.maxNewTokens));
  for (int64_t slot = slots_; slot-- > 0;) freeSlots_.push_back(static_cast<int32_t>(slot));
  if (options.repetitionPenalty != 1) seen_.assign(static_cast<size_t>(slots_ * config_.vocab), 0);

  reservePasses();
  choosePages();
  model_.reserve(model_.generationMemory, MemoryUse::Cache, bytesWith(cache_.pages),
                 "the key/value cache (smaller with a lower maxBatch or maxNewTokens)");
  BufferLayout arrays(model_.generationMemory.data());
  layOut(arrays);
  engine_.copy(stopTokens_, options.stopTokens.data(), options.stopTokens.size() * sizeof(int32_t));

  BufferLayout inputSizes;
  layOutInputs(inputSizes);
  hostInputs_.resize(inputSizes.bytes());
  BufferLayout onHost(hostInputs_.data()), onDevice(deviceInputs_);
  host_ = layOutInputs(onHost);
  device_ = layOutInputs(onDevice);
}

/// Takes the memory of the largest passes, so that the cache may have what is left.
void Generator::reservePasses() {
  model_.transformer.prepareForward();
  for (const int64_t rows : {prefillRows_, slots_}) {
    const PassShape shape = shapeOf(rows, slots_);
    BufferLayout sizes;
    layOutForward(engine_, model_.transformer.architecture(), shape, sizes, sizes);
    model_.reserveWorkspace(sizes.bytes());
    model_.reserveScratch(shape.rows, adapter_.get(), nullptr);
  }
}

/// As many pages as are of use, or as the memory budget has room for.
void Generator::choosePages() {
  const MemoryBytes held = engine_.ledger().held();
  const size_t others = std::accumulate(held.begin(), held.end(), size_t{0}) - model_.generationMemory.bytes();
  const size_t budget = engine_.ledger().budget(), room = budget - std::min(budget, others);
  int64_t pages = waiting_.pagesWanted();
  const int64_t needed = waiting_.pagesNeeded();
  while (pages > needed && bytesWith(pages) > room) pages = std::max(needed, pages - 1 - pages / 64);
  waiting_.setPages(cache_.pages = pages);
}

size_t Generator::bytesWith(int64_t pages) {
  cache_.pages = pages;
  BufferLayout sizes;
  layOut(sizes);
  return sizes.bytes();
}

void Generator::layOut(BufferLayout& layout) {
  const size_t element = dtypeSize(engine_.type()), statistic = dtypeSize(engine_.accumulator());
  cache_.keys.clear();
  cache_.values.clear();
  for (int64_t block = 0; block < config_.layers; ++block)
    for (std::vector<void*>* arrays : {&cache_.keys, &cache_.values})
      arrays->push_back(layout.reserve(cache_.pages * pageElements(), element));
  hidden_ = layout.reserve(slots_ * config_.hidden, element);
  heldHidden_ = layout.reserve(config_.hidden, element);
  logits_ = layout.reserve(slots_ * config_.vocab, statistic);
  drawn_ = layout.array<int32_t>(slots_);
  drawnLogProb_ = layout.reserve(slots_, statistic);
  stopTokens_ = layout.array<int32_t>(static_cast<int64_t>(options_.stopTokens.size()));
  prefillPlaces_ = layout.array<int32_t>(prefillRows_);
  if (!seen_.empty()) deviceSeen_ = layout.array<uint8_t>(slots_ * config_.vocab);
  BufferLayout inputs;
  layOutInputs(inputs);
  deviceInputs_ = layout.array<char>(static_cast<int64_t>(inputs.bytes()));
}

Generator::Inputs Generator::layOutInputs(BufferLayout& layout) const {
  Inputs inputs{};
  inputs.tokens = layout.array<int32_t>(slots_);
  inputs.positions = layout.array<int32_t>(slots_);
  inputs.places = layout.array<int32_t>(slots_);
  inputs.tables = layout.array<int32_t>(slots_ * tableStride_);
  inputs.lengths = layout.array<int32_t>(slots_);
  inputs.drawIndex = layout.array<int32_t>(slots_);
  inputs.streams = layout.array<int64_t>(slots_);
  inputs.forbid = layout.array<uint8_t>(slots_);
  return inputs;
}

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
  draw(admitted.sequences);
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
    std::vector<int32_t> places;
    RowSet rows{0, static_cast<int64_t>(admitted.read.size()), 0};
    for (const Prompt& prompt : admitted.read) {
      const int64_t length = static_cast<int64_t>(prompt.tokens->size());
      packed.tokens.insert(packed.tokens.end(), prompt.tokens->begin(), prompt.tokens->end());
      packed.offsets.push_back(static_cast<int32_t>(packed.tokens.size()));
      for (int64_t position = 0; position < length; ++position) places.push_back(placeOf(prompt.pages, position));
      rows.maxLength = std::max(rows.maxLength, length);
    }
    rows.rows = packed.rows();
    engine_.copy(prefillPlaces_, places.data(), places.size() * sizeof(int32_t));
    const ForwardBuffers buffers = forward(rows, {cache_, prefillPlaces_}, &packed);
    for (size_t p = 0; p < admitted.read.size(); ++p)
      hidden.push_back(static_cast<const char*>(buffers.hidden) + static_cast<size_t>(packed.offsets[p + 1] - 1) * rowBytes);
  }
  for (const auto& [from, to] : admitted.copies) copyPage(from, to);
  for (size_t s = 0; s < admitted.sequences.size(); ++s)
    engine_.copy(static_cast<char*>(hidden_) + s * rowBytes,
                 admitted.prompts[s] == kHeldPrompt ? heldHidden_ : hidden[admitted.prompts[s]], rowBytes);
  if (admitted.held && !hidden.empty()) engine_.copy(heldHidden_, hidden.back(), rowBytes);
  model_.transformer.logits(static_cast<int64_t>(admitted.sequences.size()), hidden_, logits_);
}

void Generator::copyPage(int32_t from, int32_t to) {
  const size_t bytes = static_cast<size_t>(pageElements()) * dtypeSize(engine_.type());
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
  engine_.copy(deviceInputs_, hostInputs_.data(), hostInputs_.size());
  const int64_t rows = static_cast<int64_t>(active_.size());
  const ForwardBuffers buffers =
      forward({rows, rows, 1}, {cache_, device_.places, device_.tables, tableStride_, device_.lengths}, nullptr);
  model_.transformer.logits(rows, buffers.hidden, logits_);
  draw(active_);
}

PassShape Generator::shapeOf(int64_t rows, int64_t sequences) const {
  PassShape shape;
  shape.rows = roundedCapacity(rows);
  shape.sequences = roundedCapacity(sequences);
  shape.firstSavedBlock = static_cast<int>(config_.layers);
  shape.adapter = adapter_.get();
  return shape;
}

/// Runs the transformer over packed prompts, or over the inputs of a decoding step.
ForwardBuffers Generator::forward(const RowSet& rows, const CacheUse& use, Batch* packed) {
  const Architecture& architecture = model_.transformer.architecture();
  const PassShape shape = shapeOf(rows.rows, rows.sequences);
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
  waiting_.release(sequence.pages, static_cast<int64_t>(prompts_[static_cast<size_t>(sequence.index)].size()));
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
