#include "ref/backend.h"

#include <cstdlib>
#include <cstring>

#include "core/arena.h"
#include "ops/entry.h"
#include "ref/kernels.h"

namespace rlhf {
namespace {

size_t noScratch(const Device*, const ScratchLimits*) { return 0; }
size_t noPackedForm(DType, int64_t, int64_t, int32_t) { return 0; }

Status allocate(Device*, size_t bytes, void** out) {
  *out = std::aligned_alloc(kAlignment, alignUp(bytes > 0 ? bytes : 1));
  return *out ? kOk : kNoMemory;
}
void release(Device*, void* memory) { std::free(memory); }

Status copy(Device*, Stream*, void* destination, const void* source, size_t bytes) {
  std::memmove(destination, source, bytes);
  return kOk;
}
Status fill(Device*, Stream*, void* destination, int byteValue, size_t bytes) {
  std::memset(destination, byteValue, bytes);
  return kOk;
}

// Everything runs at once, so streams and events carry nothing.
Status createStream(Device*, Stream** out) {
  *out = nullptr;
  return kOk;
}
void destroyStream(Device*, Stream*) {}
Status synchronize(Device*, Stream*) { return kOk; }
Status createEvent(Device*, Event** out) {
  *out = nullptr;
  return kOk;
}
void destroyEvent(Device*, Event*) {}
Status recordEvent(Device*, Event*, Stream*) { return kOk; }
Status waitEvent(Device*, Stream*, Event*) { return kOk; }

}  // namespace

const Ops& refOps() {
#define RLHF_REF_ENTRY(name, Arguments) .name = opEntry<Arguments, ref::name>,
  static const Ops table = {.abiHash = abiHash(),
                            .backend = "ref",
                            .instructionSet = "scalar",
                            .scratchBytes = noScratch,
                            .packedWeightBytes = noPackedForm,
                            RLHF_FOR_EACH_OP(RLHF_REF_ENTRY)};
#undef RLHF_REF_ENTRY
  return table;
}

std::unique_ptr<Device> createRefDevice() {
  auto device = std::make_unique<Device>(Device{});
  device->abiHash = abiHash();
  device->name = "ref";
  device->unifiedMemory = 1;
  device->allocate = allocate;
  device->release = release;
  device->copyAsync = copy;
  device->fillAsync = fill;
  device->createStream = createStream;
  device->destroyStream = destroyStream;
  device->synchronize = synchronize;
  device->createEvent = createEvent;
  device->destroyEvent = destroyEvent;
  device->recordEvent = recordEvent;
  device->waitEvent = waitEvent;
  return device;
}

}  // namespace rlhf
