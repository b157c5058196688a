#pragma once
#include <cstdint>

#include "ops/context.h"

namespace rlhf::cuda {

/// Opens a CUDA device. Throws Error that tells a missing driver, one that is too old, and a missing device or one that is too
/// old apart (ERR_RLHF_NO_CUDA_DRIVER, ERR_RLHF_OLD_CUDA_DRIVER, ERR_RLHF_NO_CUDA_DEVICE), each with its cure.
Device* openDevice(int32_t index);

void closeDevice(Device* device);

}  // namespace rlhf::cuda
