#include "cpu/kernels/table.h"

#include "cpu/kernels/attention_tiles.h"
#include "ops/entry.h"

// Two levels, since # keeps a macro's argument from being expanded.
#define RLHF_QUOTE(text) #text
#define RLHF_QUOTE_EXPANDED(text) RLHF_QUOTE(text)

namespace rlhf::RLHF_ISA {

Ops kernelTable() {
  Ops table{};
  table.abiHash = abiHash();
  table.backend = "cpu";
  table.instructionSet = RLHF_QUOTE_EXPANDED(RLHF_ISA);
  table.maxHeadDim = kMaxHeadDim;
  table.packedWeightBytes = packedWeightBytes;
#define RLHF_SET_KERNEL(name, Arguments) table.name = opEntry<Arguments, RLHF_ISA::name>;
  RLHF_FOR_EACH_OP(RLHF_SET_KERNEL)
#undef RLHF_SET_KERNEL
  return table;
}

}  // namespace rlhf::RLHF_ISA
