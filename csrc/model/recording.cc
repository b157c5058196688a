#include "model/recording.h"

namespace rlhf {
namespace {

void check(Device* device, Status status, const char* what) {
  if (status == kOk) return;
  throw Error(code::kInternal, format("%s failed on %s (status %d)%s%s", what, device->name, static_cast<int>(status),
                                      *device->error ? ": " : "", device->error));
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

}  // namespace rlhf
