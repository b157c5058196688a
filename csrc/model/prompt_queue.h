#pragma once
#include <cstdint>
#include <vector>

#include "model/model.h"
#include "model/page_pool.h"

namespace rlhf {

/// Equal prompts of a generate() call, which are read once.
struct PromptGroup {
  const std::vector<int32_t>* tokens;
  std::vector<int64_t> members;  // which prompts they are, in rising order

  int64_t length() const { return static_cast<int64_t>(tokens->size()); }
};

/// The prompts that wait to be answered, and the pages of the cache that sequences take, share and give back. Answers of one prompt share
/// the pages that it fills; the page in which it ends is copied for each. A sequence is admitted when the pages that it may come to
/// need are free or will be, so none ever has to wait half-way.
class PromptQueue {
 public:
  PromptQueue(const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options, const ModelConfig& config);

  const std::vector<PromptGroup>& groups() const { return groups_; }
  /// Pages with which maxBatch sequences can always be decoded at a time. The more and the longer prompts are, the more, so that an
  /// estimate for the longest is enough for all.
  int64_t pagesWanted() const;
  /// Pages without which some sequence could never be decoded.
  int64_t pagesNeeded() const;
  void setPages(int64_t pages) { pool_ = PagePool(pages); }

  bool empty() const { return next_ == groups_.size(); }
  const PromptGroup& front() const { return groups_[next_]; }
  /// Whether the prompt's keys and values are stored already.
  bool frontIsRead() const { return !promptPages_.empty(); }
  bool fits() const;

  struct Admission {
    int64_t prompt;              // which one it is
    std::vector<int32_t> pages;  // those of its tokens
    int32_t copied = -1;         // the page to copy its last one from; −1: none
    bool isLast;                 // of its group
  };
  /// Takes the first prompt, which must fit.
  Admission admit();
  /// Makes the pages of a sequence enough for `tokens` tokens.
  void grow(std::vector<int32_t>& pages, int64_t tokens);
  /// Gives the pages of a sequence back that began with a prompt of so many tokens.
  void release(const std::vector<int32_t>& pages, int64_t promptLength);

 private:
  int64_t mostPages(int64_t promptLength) const;
  bool frontIsLast() const { return member_ + 1 == front().members.size(); }

  const GenerateOptions& options_;
  const ModelConfig& config_;
  std::vector<PromptGroup> groups_;
  size_t next_ = 0, member_ = 0;      // the group that is next, and which of it
  PagePool pool_{0};
  std::vector<int32_t> promptPages_;  // of the first group, once some of it are admitted
  int64_t promised_ = 0;              // pages that the sequences in flight may still take
};

}  // namespace rlhf
