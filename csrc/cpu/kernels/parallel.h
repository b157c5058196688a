#pragma once
#include <algorithm>

#include "cpu/backend.h"

// How kernels share their work out. What a task computes depends on its index alone, so that neither the
// number of threads nor the choice to stay on the calling thread changes a bit of the result.

namespace rlhf::RLHF_ISA {

/// Elements of streaming work below which a second thread costs more than it saves.
inline constexpr int64_t kElementsPerTask = 1 << 15;

constexpr int64_t ceilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Calls task(index, slot) for every index in [0, count), on the calling thread alone where the work is not
/// worth sharing.
template <class Task>
void forEachTask(OpContext& context, int64_t count, bool worthSharing, Task&& task) {
  if (worthSharing) {
    cpu::pool(context).run(count, task);
  } else {
    cpu::pool(context).run(1, [&](int64_t, int slot) {
      for (int64_t index = 0; index < count; ++index) task(index, slot);
    });
  }
}

/// Calls body(begin, end) for consecutive ranges that cover [0, count), each of about kElementsPerTask
/// elements when one item has `elementsPerItem`.
template <class Body>
void forEachRange(OpContext& context, int64_t count, int64_t elementsPerItem, Body&& body) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, elementsPerItem));
  cpu::pool(context).run(ceilDivide(count, grain), [&](int64_t index, int) {
    body(index * grain, std::min(count, (index + 1) * grain));
  });
}

}  // namespace rlhf::RLHF_ISA
