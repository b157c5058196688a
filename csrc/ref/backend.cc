#include "ref/backend.h"

#include "ops/entry.h"
#include "ops/host_device.h"
#include "ref/kernels.h"

namespace rlhf {
namespace {

size_t noScratch(const Device*, const ScratchLimits*) { return 0; }
size_t noPackedForm(DType, DType, int64_t, int64_t, int32_t) { return 0; }

}  // namespace

const Ops& refOps() {
#define RLHF_REF_ENTRY(name, Arguments) .name = opEntry<Arguments, ref::name>,
  static const Ops table = {.abiHash = abiHash(),
                            .backend = "ref",
                            .instructionSet = "scalar",
                            .maxHeadDim = 0,
                            .scratchBytes = noScratch,
                            .packedWeightBytes = noPackedForm,
                            RLHF_FOR_EACH_OP(RLHF_REF_ENTRY)};
#undef RLHF_REF_ENTRY
  return table;
}

std::unique_ptr<Device> createRefDevice() { return std::make_unique<Device>(makeHostDevice("ref")); }

}  // namespace rlhf
