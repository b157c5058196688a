#pragma once
#include <type_traits>
#include <utility>
#include <vector>

#include "node/kernels_arguments.h"
#include "node/kernels_backends.h"

namespace rlhf::kernels {

/// JavaScript's arrays in the memory of a device that has its own; on a device that shares the host's nothing is copied. ArrayBuffers
/// are copied whole: arrays that share one share its copy, and what a test has put around an array is around its copy too.
class DeviceCopies {
 public:
  DeviceCopies(Backend& backend, const std::vector<HostBuffer>& buffers);
  ~DeviceCopies();
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;

  /// The same arguments with the addresses of the copies.
  template <class Arguments>
  Arguments onDevice(Arguments arguments) const {
    arguments.fields([&]<class Field>(const char*, Field& field) {
      if constexpr (std::is_pointer_v<Field>)
        if (field) field = static_cast<Field>(moved(const_cast<void*>(static_cast<const void*>(field))));
    });
    return arguments;
  }

  /// Brings everything back to where it came from, when all ops have run.
  void copyBack();

 private:
  void* moved(void* address) const;

  Backend& backend_;
  std::vector<std::pair<HostBuffer, char*>> copies_;
};

/// Events of a device, given back at the end of the scope.
class DeviceEvents {
 public:
  DeviceEvents(Backend& backend, int64_t count);
  ~DeviceEvents();
  DeviceEvents(const DeviceEvents&) = delete;
  DeviceEvents& operator=(const DeviceEvents&) = delete;

  void record(int64_t index);
  /// When the stream has passed both.
  double secondsBetween(int64_t begin, int64_t end) const;

 private:
  Backend& backend_;
  std::vector<Event*> events_;
};

/// Seconds of each repetition by the device's own clock. `run(i)` queues one.
template <class Run>
std::vector<double> timeByEvents(Backend& backend, int64_t repetitions, Run&& run) {
  DeviceEvents events(backend, 2 * repetitions);
  for (int64_t i = 0; i < repetitions; ++i) {
    events.record(2 * i);
    run(i);
    events.record(2 * i + 1);
  }
  backend.synchronize();
  std::vector<double> seconds;
  for (int64_t i = 0; i < repetitions; ++i) seconds.push_back(events.secondsBetween(2 * i, 2 * i + 1));
  return seconds;
}

}  // namespace rlhf::kernels
