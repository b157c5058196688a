#pragma once
#include <cstdint>

#include "ops/context.h"

namespace rlhf::cuda {

/// Opens a CUDA device. Throws Error (kUnsupported) that tells a missing driver, one that is too old, a missing device and a
/// device that is too old apart, each with its cure.
Device* openDevice(int32_t index);

void closeDevice(Device* device);

}  // namespace rlhf::cuda
