#include "node/kernels_device.h"

#include <algorithm>

namespace rlhf::kernels {

DeviceCopies::DeviceCopies(Backend& backend, const std::vector<HostBuffer>& buffers) : backend_(backend) {
  if (backend.device()->unifiedMemory) return;
  copies_.reserve(buffers.size());
  for (const HostBuffer& buffer : buffers) {
    copies_.emplace_back(buffer, static_cast<char*>(backend.allocate(buffer.bytes, "an op's arrays")));
    backend.copy(copies_.back().second, buffer.data, buffer.bytes);
  }
}

DeviceCopies::~DeviceCopies() {
  for (const auto& [buffer, copy] : copies_) backend_.release(copy);
}

void* DeviceCopies::moved(void* address) const {
  const auto* byte = static_cast<char*>(address);
  const auto within = [&](const HostBuffer& buffer, size_t bytes) { return buffer.data <= byte && byte < buffer.data + bytes; };
  for (const auto& [buffer, copy] : copies_)
    if (within(buffer, buffer.bytes)) return copy + (byte - buffer.data);
  for (const auto& [buffer, copy] : copies_)
    if (within(buffer, buffer.bytes + 1)) return copy + (byte - buffer.data);  // an empty array at its end
  return address;
}

void DeviceCopies::copyBack() {
  for (const auto& [buffer, copy] : copies_) backend_.copy(buffer.data, copy, buffer.bytes);
  backend_.synchronize();
}

DeviceEvents::DeviceEvents(Backend& backend, int64_t count) : backend_(backend) {
  for (int64_t i = 0; i < count; ++i) {
    Event* event = nullptr;
    backend.check(backend.device()->createEvent(backend.device(), &event), "creating an event");
    events_.push_back(event);
  }
}

DeviceEvents::~DeviceEvents() {
  for (Event* event : events_) backend_.device()->destroyEvent(backend_.device(), event);
}

void DeviceEvents::record(int64_t index) {
  Device* device = backend_.device();
  backend_.check(device->recordEvent(device, events_[static_cast<size_t>(index)], backend_.context().stream), "recording an event");
}

double DeviceEvents::secondsBetween(int64_t begin, int64_t end) const {
  Device* device = backend_.device();
  double seconds = 0;
  backend_.check(device->eventSeconds(device, events_[static_cast<size_t>(begin)], events_[static_cast<size_t>(end)], &seconds),
                 "reading the time between events");
  return seconds;
}

}  // namespace rlhf::kernels
