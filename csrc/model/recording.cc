#include "model/recording.h"

#include <algorithm>
#include <utility>

namespace rlhf {
namespace {

void check(Device* device, Status status, const char* what) {
  if (status == kOk) return;
  throw Error(errorCodeOf(status),
              format("%s failed on %s (status %d)%s%s%s", what, device->name, static_cast<int>(status), *device->error ? ": " : "", device->error,
                     status == kNoMemory ? ". The device has no memory left beside what the engine holds: give a smaller memoryBudget" : ""));
}

}  // namespace

Recording::~Recording() {
  Device* device = engine_.device();
  if (!graph_) return;
  (void)device->synchronize(device, engine_.context().stream);
  device->destroyGraph(device, graph_);
}

void Recording::begin() const {
  Device* device = engine_.device();
  check(device, device->beginCapture(device, engine_.context().stream), "beginning to record commands");
}

void Recording::end() {
  Device* device = engine_.device();
  check(device, device->endCapture(device, engine_.context().stream, &graph_), "recording commands");
}

/// Ends a recording that has failed; the stream is then as before it.
void Recording::drop() noexcept {
  Device* device = engine_.device();
  if (device->endCapture(device, engine_.context().stream, &graph_) == kOk) device->destroyGraph(device, graph_);
}

void Recording::run() const {
  Device* device = engine_.device();
  check(device, device->launchGraph(device, engine_.context().stream, graph_), "running recorded commands");
}

std::shared_ptr<const Recording> StepRecordings::find(int64_t sequences, const CommandTrace& trace) {
  const auto found = kept_.find(sequences);
  if (found == kept_.end() || !(found->second.trace == trace)) return nullptr;
  found->second.used = ++uses_;
  return found->second.recording;
}

void StepRecordings::keep(int64_t sequences, CommandTrace trace, std::shared_ptr<const Recording> recording) {
  kept_[sequences] = {std::move(trace), std::move(recording), ++uses_};
  if (kept_.size() <= kMost) return;
  kept_.erase(std::min_element(kept_.begin(), kept_.end(), [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
}

}  // namespace rlhf
