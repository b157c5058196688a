#pragma once
#include <cstdint>

namespace rlhf::cpu {

/// Bytes of the arrays that a loop passes over: what it only reads, what it only writes, and what it changes in place, which counts twice.
struct Stream {
  int64_t read = 0, written = 0, updated = 0;

  int64_t total() const { return read + written + 2 * updated; }
};

}  // namespace rlhf::cpu
