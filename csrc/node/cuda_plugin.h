#pragma once
#include <memory>

#include "ops/ops.h"

namespace rlhf::node {

/// The folder of the shared library with the CUDA backend, from that of this addon: each addon says it.
extern const char* const kCudaPluginFolder;

/// The CUDA backend's operator table, from its shared library, which is opened at the first call and stays open.
/// Throws Error(ERR_RLHF_NO_CUDA) that says why it cannot be used.
const Ops& cudaOps();

/// Opens CUDA device `index`. Throws Error with ERR_RLHF_NO_CUDA, ERR_RLHF_NO_CUDA_DRIVER, ERR_RLHF_OLD_CUDA_DRIVER,
/// ERR_RLHF_NO_CUDA_DEVICE or ERR_RLHF_MEMORY, and the cure.
std::shared_ptr<Device> openCudaDevice(int32_t index);

}  // namespace rlhf::node
