#include "model/prompt_queue.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "ops/decode.h"

namespace rlhf {
namespace {

/// Sum of the `count` largest.
int64_t sumOfLargest(std::vector<int64_t> values, int64_t count) {
  const auto end = values.begin() + std::min<int64_t>(count, static_cast<int64_t>(values.size()));
  std::partial_sort(values.begin(), end, values.end(), std::greater<>());
  return std::accumulate(values.begin(), end, int64_t{0});
}

}  // namespace

PromptQueue::PromptQueue(const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options,
                         const ModelConfig& config)
    : options_(options), config_(config) {
  const auto less = [](const std::vector<int32_t>* left, const std::vector<int32_t>* right) { return *left < *right; };
  std::map<const std::vector<int32_t>*, size_t, decltype(less)> places(less);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto [place, isNew] = places.try_emplace(&prompts[i], groups_.size());
    if (isNew) groups_.push_back({&prompts[i], {}});
    groups_[place->second].members.push_back(static_cast<int64_t>(i));
  }
}

/// Pages that a sequence of a prompt has at most: the last token that is drawn is never stored.
int64_t PromptQueue::mostPages(int64_t promptLength) const {
  return cachePages(promptLength + std::min(options_.maxNewTokens, config_.maxPositions - promptLength) - 1);
}

int64_t PromptQueue::pagesWanted() const {
  std::vector<int64_t> alone, prompts, answers;  // pages if nothing is shared; of prompts, each once; of what follows them
  for (const PromptGroup& group : groups_) {
    prompts.push_back(cachePages(group.length()));
    for (size_t i = 0; i < group.members.size(); ++i) {
      alone.push_back(mostPages(group.length()));
      answers.push_back(cachePages(std::min(options_.maxNewTokens, config_.maxPositions)) + 1);  // it may begin within a page
    }
  }
  const int64_t shared = sumOfLargest(prompts, options_.maxBatch) + sumOfLargest(answers, options_.maxBatch);
  return std::max(pagesNeeded(), std::min(shared, sumOfLargest(alone, options_.maxBatch)));
}

int64_t PromptQueue::pagesNeeded() const {
  int64_t most = 0;
  for (const PromptGroup& group : groups_)  // for those that wait the page in which the prompt ends is kept as it is
    most = std::max(most, mostPages(group.length()) + (group.members.size() > 1 ? 1 : 0));
  return most;
}

bool PromptQueue::fits() const {
  const int64_t length = front().length(), prompt = cachePages(length);
  const int64_t copies = frontIsLast() ? 0 : prompt - length / kCachePageTokens;
  const int64_t taken = (frontIsRead() ? 0 : prompt) + copies + mostPages(length) - prompt;
  return pool_.available() - promised_ >= taken;
}

PromptQueue::Admission PromptQueue::admit() {
  const int64_t length = front().length();
  if (!frontIsRead()) grow(promptPages_, length), promised_ += cachePages(length);
  Admission admission{front().members[member_], promptPages_, -1, frontIsLast()};
  promised_ += mostPages(length) - cachePages(length);
  if (admission.isLast) {  // it takes over what the prompt holds
    promptPages_.clear();
    member_ = 0;
    ++next_;
    return admission;
  }
  ++member_;
  for (int64_t page = 0; page < length / kCachePageTokens; ++page) pool_.share(promptPages_[static_cast<size_t>(page)]);
  if (length % kCachePageTokens != 0) {
    admission.copied = promptPages_.back();
    admission.pages.back() = pool_.take();
  }
  return admission;
}

void PromptQueue::grow(std::vector<int32_t>& pages, int64_t tokens) {
  for (; static_cast<int64_t>(pages.size()) < cachePages(tokens); --promised_) pages.push_back(pool_.take());
}

void PromptQueue::release(const std::vector<int32_t>& pages, int64_t promptLength) {
  for (const int32_t page : pages) pool_.release(page);
  promised_ -= mostPages(promptLength) - static_cast<int64_t>(pages.size());
}

}  // namespace rlhf
