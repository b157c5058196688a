#pragma once
#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

// What librlhf_cuda.so exports. The engine opens the library when CUDA is asked for, and compares both tables' abiHash with
// its own before it uses them.

extern "C" {

/// The operator table. Valid as long as the library is loaded.
__attribute__((visibility("default"))) const rlhf::Ops* rlhf_cuda_ops();

/// Opens CUDA device `index`. On success *out is to be closed by rlhf_cuda_close_device. Else the reason and its cure are
/// in `message` (NUL-terminated): kNoDriver, kOldDriver, kNoDevice where none of that index exists or its compute capability is
/// below 8.0; kNoMemory or kDeviceFailure where CUDA fails to start.
__attribute__((visibility("default"))) rlhf::Status rlhf_cuda_device(int32_t index, rlhf::Device** out, char* message,
                                                                     size_t messageBytes);

__attribute__((visibility("default"))) void rlhf_cuda_close_device(rlhf::Device* device);

}
