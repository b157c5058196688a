#include "ops/planning.h"

#include "core/arena.h"

namespace rlhf {
namespace {

template <class Arguments>
Status doNothing(OpContext*, const Arguments*) {
  return kOk;
}

/// Not null, which would mean that there is none. Addresses inside an array are made from it and never followed.
Status allocateNothing(Device*, size_t, void** out) {
  *out = reinterpret_cast<void*>(uintptr_t{kAlignment});  // NOLINT
  return kOk;
}
void releaseNothing(Device*, void*) {}
Status copyNothing(Device*, Stream*, void*, const void*, size_t) { return kOk; }
Status fillNothing(Device*, Stream*, void*, int, size_t) { return kOk; }

}  // namespace

Ops planningOps(const Ops& ops) {
  Ops planning = ops;
#define RLHF_DO_NOTHING(name, Arguments) \
  if (ops.name) planning.name = doNothing<Arguments>;
  RLHF_FOR_EACH_OP(RLHF_DO_NOTHING)
#undef RLHF_DO_NOTHING
  return planning;
}

Device planningDevice(const Device& device) {
  Device planning = device;
  planning.allocate = allocateNothing;
  planning.release = releaseNothing;
  planning.copyAsync = copyNothing;
  planning.fillAsync = fillNothing;
  planning.beginCapture = nullptr;  // there is nothing to record
  return planning;
}

}  // namespace rlhf
