#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "model/generator.h"

// What a generate() call asks for is checked here, and the memory for it laid out.

namespace rlhf {
namespace {

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

}  // namespace

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
      memory_{model.passMemory, {}},
      waiting_(prompts, options, config_),
      generations_(prompts.size()) {
  validate(prompts, options, config_);
  // What products round anyway is not worth reading at twice the width for every token.
  cache_.type = engine_.compute() == DType::BF16 ? DType::BF16 : engine_.type();
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

  chooseCache();
  memory_.block = memory_.pool->activations.borrow(bytesWith(cache_.pages), MemoryUse::Cache,
                                                   "the key/value cache (smaller with a lower maxBatch or maxNewTokens)");
  BufferLayout arrays(memory_.block.data());
  layOut(arrays);
  engine_.upload(stopTokens_, options.stopTokens.data(), options.stopTokens.size() * sizeof(int32_t));

  BufferLayout inputSizes;
  layOutInputs(inputSizes);
  hostInputs_.resize(inputSizes.bytes());
  BufferLayout onHost(hostInputs_.data()), onDevice(deviceInputs_);
  host_ = layOutInputs(onHost);
  device_ = layOutInputs(onDevice);
}

void Generator::chooseCache() {
  const bool again = takesLastCache();
  reservePasses();
  if (!again) choosePages();
  waiting_.setPages(cache_.pages);
  model_.lastCache = {slots_, tableStride_, cache_.pages};
}

/// Lays the cache out as the call before did, where that serves this one too and takes no more memory than there is: with all arrays in the same
/// places recorded steps can be run again.
bool Generator::takesLastCache() {
  const CacheShape& last = model_.lastCache;
  if (!last.serves({slots_, tableStride_, waiting_.pagesWanted()})) return false;
  const int64_t wanted = std::exchange(tableStride_, last.tableStride);
  if (bytesWith(last.pages) <= model_.passMemory->activations.largestFree()) return true;
  tableStride_ = wanted;
  return false;
}

/// Takes the memory of the largest passes, so that the cache may have what is left.
void Generator::reservePasses() {
  model_.transformer.prepareForward();
  for (const auto& [rows, tableStride] : {std::pair{prefillRows_, int64_t{0}}, std::pair{slots_, tableStride_}}) {
    const PassShape shape = shapeOf(rows, slots_);
    BufferLayout sizes;
    layOutForward(engine_, model_.transformer.architecture(), shape, sizes, sizes);
    model_.reserveWorkspace(sizes.bytes());
    model_.reserveScratch(shape.rows, adapter_.get(), nullptr, 0, tableStride);
  }
}

/// As many pages as are of use, or as the memory budget has room for.
void Generator::choosePages() {
  const MemoryBytes held = engine_.ledger().held();
  const size_t others = std::accumulate(held.begin(), held.end(), size_t{0}) - model_.passMemory->activations.largestFree();
  const size_t budget = engine_.ledger().budget(), room = budget - std::min(budget, others);
  int64_t pages = waiting_.pagesWanted();
  const int64_t needed = waiting_.pagesNeeded();
  while (pages > needed && bytesWith(pages) > room) pages = std::max(needed, pages - 1 - pages / 64);
  cache_.pages = pages;
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
      arrays->push_back(layout.reserve(cache_.pages * pageElements(), dtypeSize(cache_.type)));
  hidden_ = layout.reserve(slots_ * config_.hidden, element);
  heldHidden_ = layout.reserve(config_.hidden, element);
  logits_ = layout.reserve(slots_ * config_.vocab, statistic);
  drawn_ = layout.array<int32_t>(slots_);
  drawnLogProb_ = layout.reserve(slots_, statistic);
  stopTokens_ = layout.array<int32_t>(static_cast<int64_t>(options_.stopTokens.size()));
  if (!seen_.empty()) deviceSeen_ = layout.array<uint8_t>(slots_ * config_.vocab);
  BufferLayout inputs;
  layOutInputs(inputs);
  deviceInputs_ = layout.array<char>(static_cast<int64_t>(inputs.bytes()));
  prefillPlaces_ = layout.array<int32_t>(prefillRows_);  // last: a step does not read it, and the others' places do not depend on prompts
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

PassShape Generator::shapeOf(int64_t rows, int64_t sequences) const {
  PassShape shape;
  shape.rows = roundedCapacity(rows);
  shape.sequences = roundedCapacity(sequences);
  shape.firstSavedBlock = static_cast<int>(config_.layers);
  shape.selectsRows = true;
  shape.adapter = adapter_.get();
  return shape;
}

}  // namespace rlhf
