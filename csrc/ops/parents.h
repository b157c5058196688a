#pragma once
#include <cstdint>

#include "core/error.h"

namespace rlhf {

/// A sequence of a packed batch with a parent continues it: it attends to the parent's tokens, and its positions follow on theirs. So a
/// prompt that several answers share stands in the batch once. Throws ERR_RLHF_ARGUMENT unless every parent stands before its children
/// and has no parent itself. `parents` may be null: no sequence has one.
inline void requireParents(const char* what, const int32_t* parents, int64_t sequences) {
  if (!parents) return;
  for (int64_t s = 0; s < sequences; ++s) {
    const int32_t parent = parents[s];
    const char* expected = nullptr;
    if (parent < -1 || parent >= s)
      expected = "-1 (none) or an earlier sequence: a parent stands before its children";
    else if (parent >= 0 && parents[parent] >= 0)
      expected = "a sequence without a parent: parents go one level deep";
    if (expected)
      throw Error(code::kArgument, format("%s: parents[%lld] is %d, expected %s", what, static_cast<long long>(s), parent, expected));
  }
}

}  // namespace rlhf
