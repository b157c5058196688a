#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace rlhf {

/// Strings that end a sequence. They may begin and end inside tokens, and tokens inside characters, so they are looked for in bytes.
class StopStrings {
 public:
  /// `bytes`: of all tokens in order, those of token t at [offsets[t], offsets[t + 1]). Tokens beyond have none.
  StopStrings(std::string bytes, std::vector<int32_t> offsets, std::vector<std::string> strings)
      : bytes_(std::move(bytes)), offsets_(std::move(offsets)), strings_(std::move(strings)) {
    bool ordered = !offsets_.empty() && offsets_.front() == 0 &&
                   offsets_.back() == static_cast<int64_t>(bytes_.size());
    for (size_t t = 1; t < offsets_.size(); ++t) ordered = ordered && offsets_[t - 1] <= offsets_[t];
    if (!ordered) throw Error(code::kArgument, "stopStrings: offsets must rise from 0 to the number of bytes");
    for (const std::string& string : strings_) {
      if (string.empty()) throw Error(code::kArgument, "stopStrings: a stop string must not be empty");
      longest_ = std::max(longest_, string.size());
    }
  }

  /// Appends a token to the text of a sequence, of which `tail` keeps as much as a stop string can begin in; true when one ends
  /// within the token.
  bool append(std::string& tail, int32_t token) const {
    const size_t before = tail.size();
    if (static_cast<size_t>(token) + 1 < offsets_.size()) {
      const size_t begin = static_cast<size_t>(offsets_[token]), end = static_cast<size_t>(offsets_[token + 1]);
      tail.append(bytes_, begin, end - begin);
    }
    bool found = false;
    for (const std::string& string : strings_) {
      const size_t from = before < string.size() ? 0 : before - string.size() + 1;
      found = found || tail.find(string, from) != std::string::npos;
    }
    if (tail.size() >= longest_) tail.erase(0, tail.size() - (longest_ - 1));
    return found;
  }

 private:
  std::string bytes_;
  std::vector<int32_t> offsets_;
  std::vector<std::string> strings_;
  size_t longest_ = 1;
};

}  // namespace rlhf
