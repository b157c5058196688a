#pragma once
#include "ops/context.h"

namespace rlhf::cpu {

/// Has a host device take large arrays from the system, where it can, and not from the heap: in huge pages, as packing walks down columns,
/// which are a page apart, and runs out of translations otherwise; and given back at once when they are released, which the heap does not promise.
void useLargeArrays(Device& device);

}  // namespace rlhf::cpu
