#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/batch.h"
#include "model/model_impl.h"
#include "model/prompt_queue.h"
#include "model/recording.h"

namespace rlhf {

// Generation with a key/value cache of pages. Sequences are decoded together, up to `maxBatch` of them and as many as the cache has
// pages for; when one ends, its pages go to a prompt that waits. Prompts are read through the same packed forward pass
// that training uses, equal ones once. What is drawn for a sequence depends on its own logits and on (seed, stream, number of
// the new token), not on which others are decoded beside it.

/// One generate() call.
class Generator {
 public:
  Generator(Model::Impl& model, const std::vector<std::vector<int32_t>>& prompts,
            const GenerateOptions& options, const std::function<void(int64_t, int32_t)>& onToken,
            const std::atomic<bool>& cancel);
  std::vector<Generation> run();

 private:
  /// Prompts are packed up to about this many tokens at a time, which bounds the activations of a prefill.
  static constexpr int64_t kPrefillTokens = 4096;

  struct Sequence {
    int64_t index = 0;           // of its prompt
    int32_t slot = 0;            // which of the sequences in flight it is
    int64_t length = 0;          // tokens so far, prompt included
    std::vector<int32_t> pages;  // of the cache
    int32_t last = 0;            // newest token, not yet in the cache
    std::string tail;            // end of the new text, where a stop string may have begun
  };

  /// The decoding step for some number of sequences: after a few times it is worth recording.
  struct Step {
    int64_t runs = 0;
    std::shared_ptr<const Recording> recording;
  };
  static constexpr int64_t kRunsBeforeRecording = 2;

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

  /// The key/value cache, logits and inputs of the sequences being decoded, in memory that passes use when nothing is.
  struct Borrowed {
    ~Borrowed() { pool->activations.giveBack(std::move(block)); }
    std::shared_ptr<PassMemory> pool;
    DeviceMemory block;
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

  void chooseCache();
  bool takesLastCache();
  void reservePasses();
  void choosePages();
  size_t bytesWith(int64_t pages);
  bool admit();
  Admitted nextSequences();
  void read(const Admitted& admitted);
  void copyPage(int32_t from, int32_t to);
  void decode();
  std::shared_ptr<const Recording> recordingOf(int64_t rows, int64_t runs);
  void decodeOnce(int64_t rows);
  PassShape shapeOf(int64_t rows, int64_t sequences) const;
  ForwardBuffers forward(RowSet rows, const CacheUse& use, const Batch* packed);
  void uploadInputs(const std::vector<Sequence>& sequences);
  void sample(int64_t rows);
  void keepDrawn(std::vector<Sequence>& sequences);
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
  Borrowed memory_;

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
  std::map<int64_t, Step> steps_;  // by the number of sequences
};

}  // namespace rlhf
